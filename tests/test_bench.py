"""`lgf bench`: every provider gives the answer, a wrong one is not timed, and the numbers are kept."""

import json

import pytest
import torch

from lgf_kernels.bench import cases, cli, measure
from lgf_kernels.bench import providers as who
from lgf_kernels.cli import main

pytest.importorskip("tqdm")
SMALL = {
    "small-lgf": cases.Case("lgf_kl", (1, 3, 6, 7, 8), (8, 5), "a small Local Gram Flow"),
    "small-relation": cases.Case("token_relation", (1, 3, 12, 8), (5,), "a small token relation"),
}


@pytest.fixture(autouse=True)
def small_cases(monkeypatch):
    for name in list(cases.CASES):
        monkeypatch.delitem(cases.CASES, name)
    for name, case in SMALL.items():
        monkeypatch.setitem(cases.CASES, name, case)


@pytest.mark.parametrize("name", SMALL)
def test_every_provider_is_right(name):
    case = SMALL[name]
    truth = measure.truth(case)
    for provider_name in who.providers(case):
        errors = measure.errors(who.provider(provider_name, case), case, *truth)
        assert max(errors) < 1e-5, provider_name


def test_table_and_file(tmp_path, capsys):
    out = tmp_path / "results" / "losses.jsonl"
    arguments = ["bench", "small-lgf", "--rounds", "2", "--providers", "eager", "portable", "--out", str(out)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "portable" in text and "1.00x" in text
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["provider"] for row in rows] == ["eager", "portable"]
    for row in rows:
        assert row["low_ms"] <= row["median_ms"] <= row["high_ms"] and row["torch"] == torch.__version__


def test_a_wrong_answer_is_shown_and_not_timed(monkeypatch, capsys):
    right = who.provider
    monkeypatch.setattr(
        cli, "provider", lambda n, c: (lambda s, t: 1.01 * right(n, c)(s, t)) if n == "eager" else right(n, c)
    )
    assert main(["bench", "small-lgf", "--rounds", "2", "--providers", "eager", "portable", "--no-memory"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["eager"])
    assert "WRONG" in line and "ms" not in line


def test_memory_counts_what_is_allocated():
    """Eager token relations hold several n x n matrices; the tiles of the portable backend do not."""
    case = cases.Case("token_relation", (1, 8, 300, 16), (16,), "")
    matrix = (8 * 300) ** 2 * 4
    assert measure.peak_memory(case, "eager") > 3 * matrix
    assert measure.peak_memory(case, "portable") < matrix


@pytest.mark.parametrize("name", SMALL)
def test_memory_of_every_provider_can_be_measured(name):
    for provider_name in who.providers(SMALL[name]):
        assert measure.peak_memory(SMALL[name], provider_name) >= 0


@pytest.mark.parametrize("arguments", [["no-such-case"], ["--rounds", "1"], ["small-lgf", "--providers", "cudnn"]])
def test_bad_arguments_say_what_there_is(arguments):
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert "lgf bench:" in str(caught.value)
