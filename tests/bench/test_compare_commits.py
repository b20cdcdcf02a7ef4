"""Two commits of a small repository whose `lgf bench` answers at once: built apart, measured in turns, nothing left behind."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import compare_commits as compare
import pytest
from compare_commits import main
from lgf_bench import checkout
from support.bench_cases import row

pytest.importorskip("tqdm")

SETUP = """
from pathlib import Path
bench = Path("benchmarks/lgf_bench")
assert (bench / "compare.py").exists(), "the benchmark of the present checkout"
(bench / "__main__.py").write_text(Path("command.py").read_text())
(bench / "built.json").write_text(Path("row.json").read_text())
"""
COMMAND = """
import sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
(out / "losses.jsonl").write_text(Path(__file__).with_name("built.json").read_text())
"""


@pytest.fixture
def repository(tmp_path, git, monkeypatch):
    """Of three commits: slow, twice as fast, and one that does not build."""
    root = tmp_path / "repository"
    (root / "lgf_kernels").mkdir(parents=True)
    (root / "lgf_kernels" / "__init__.py").touch()
    (root / "command.py").write_text(COMMAND)
    (root / "setup.py").write_text(SETUP)
    git(root, "init", "-q")
    for milliseconds in (10.0, 5.0, None):
        times = {"median_ms": milliseconds, "low_ms": milliseconds, "high_ms": milliseconds}
        parts = dict.fromkeys(("forward", "backward", "both"), times)
        (root / "row.json").write_text(json.dumps(row(**parts)) + "\n")
        if milliseconds is None:
            (root / "setup.py").write_text("raise SystemExit('no compiler')")
        git(root, "add", ".")
        git(root, "commit", "-q", "-m", "x")
    monkeypatch.setattr(checkout, "ROOT", root)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield root
    assert worktrees(git, root) == [root]
    assert not git(root, "status", "--porcelain")
    assert not list(tmp_path.glob("lgf-compare-*"))


def worktrees(git, root) -> list[Path]:
    lines = git(root, "worktree", "list", "--porcelain").splitlines()
    return [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]


def words(capsys) -> list[str]:
    """Return the last line that was printed, word by word."""
    return capsys.readouterr().out.splitlines()[-1].split()


def test_a_commit_against_another_and_itself(repository, capsys):
    assert main(["HEAD~2", "HEAD~1"]) == 0
    assert words(capsys)[-6:] == ["10.0", "ms", "5", "ms", "2.00x", "faster"]
    assert main(["HEAD~1", "HEAD~2"]) == 0
    assert words(capsys)[-6:] == ["5", "ms", "10.0", "ms", "0.50x", "slower"]
    assert main(["HEAD~1", "HEAD~1"]) == 0
    assert words(capsys)[-4:] == ["1.00x", "within", "the", "spread"]


def test_a_commit_that_does_not_build(repository, capsys):
    assert main(["HEAD~1", "HEAD"]) == 2
    assert "HEAD does not build:\nno compiler" in capsys.readouterr().err


@pytest.mark.parametrize(("a", "b", "wrong"), [("HEAD", "no-such-commit", "no-such-commit"), (".", "HEAD", ".")])
def test_what_is_no_commit(repository, capsys, a, b, wrong):
    assert main([a, b]) == 2
    assert f"{wrong!r} is no commit of this repository" in capsys.readouterr().err


def test_a_checkout_that_git_does_not_read(repository, monkeypatch, capsys):
    """As of another user: what it says is passed on."""
    with monkeypatch.context() as patch:
        patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        assert main(["HEAD~1", "HEAD"]) == 2
    assert "git says of this checkout: fatal: detected dubious ownership" in capsys.readouterr().err


def test_interrupted(repository, monkeypatch, capsys):
    def interrupted(place, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "_measure", interrupted)
    assert main(["HEAD~2", "HEAD~1"]) == 130
    assert "interrupted" in capsys.readouterr().err


FOREVER = """
import sys, tempfile, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import compare_commits as compare
from lgf_bench import checkout
checkout.ROOT, tempfile.tempdir = Path(sys.argv[1]), sys.argv[2]
compare._measure = lambda *_: print("measuring", flush=True) or time.sleep(600)
compare.main(["HEAD~2", "HEAD~1"])
"""


def test_what_a_killed_comparison_left_is_removed_and_a_live_one_is_let_alone(repository, git, tmp_path):
    command = [sys.executable, "-P", "-c", FOREVER, repository, tmp_path, str(Path(compare.__file__).parent)]
    with subprocess.Popen(command, env=checkout.environment(), stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "measuring\n"
            there = worktrees(git, repository)
            compare.remove_leftovers()
            assert worktrees(git, repository) == there and len(there) == 3
            assert all((place / "setup.py").exists() for place in there)
        finally:
            other.kill()
    assert main(["HEAD~2", "HEAD~1"]) == 0
