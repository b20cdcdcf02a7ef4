"""Which code runs, in a checkout and in a copy without git."""

import re

import pytest
from lgf_bench import checkout


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A tree that looks like the project's, without git."""
    place = tmp_path / "copy"
    for file in ("lgf_kernels/a.py", "lgf_kernels/core/b.py", "csrc/cuda/c.cu"):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text("one")
    monkeypatch.setattr(checkout, "ROOT", place)
    return place


@pytest.fixture
def commit_all(git):
    def commit(place):
        git(place, "init", "-q")
        git(place, "add", ".")
        git(place, "commit", "-qm", "all")

    return commit


def test_in_a_checkout_it_is_the_commit_and_what_differs_from_it(copy, commit_all):
    commit_all(copy)
    clean = checkout.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    (copy / "README.md").write_text("not code")
    assert checkout.commit() == clean
    changed = set()
    for text in ("two", "three"):
        (copy / "lgf_kernels" / "core" / "b.py").write_text(text)
        changed.add(checkout.commit())
    assert len(changed) == 2 and all(re.fullmatch(f"{clean}-dirty-[0-9a-f]{{8}}", name) for name in changed)


def test_without_git_it_is_a_digest_of_the_code(copy):
    before = checkout.commit()
    assert re.fullmatch("files-[0-9a-f]{8}", before) and checkout.commit() == before
    (copy / "lgf_kernels" / "a.so").write_text("built")
    (copy / "README.md").write_text("not code")
    assert checkout.commit() == before
    (copy / "csrc" / "cuda" / "c.cu").write_text("two")
    assert checkout.commit() != before


def test_the_commit_of_a_repository_around_it_is_not_ours(copy, commit_all):
    commit_all(copy.parent)
    assert checkout.commit().startswith("files-")


def test_without_the_program_git_a_checkout_is_a_copy(copy, commit_all, monkeypatch):
    commit_all(copy)
    monkeypatch.setenv("PATH", "/nowhere")
    assert checkout.commit().startswith("files-")
