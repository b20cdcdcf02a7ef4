"""The tuner: what it tries, that the choice reaches the kernels, and its report. The kernels run in Triton's interpreter."""

import importlib

import pytest

pytest.importorskip("triton")

from argparse import Namespace
from dataclasses import replace

import tune
from lgf_bench import correctness, results
from lgf_bench.families import TUNED
from lgf_bench.families.base import Tuned, on_backend
from support.bench_cases import SMALL
from support.families import of_every_family

from lgf_kernels.core import triton_launch as launch
from lgf_kernels.gram_flow import triton_configs as configs


def test_candidates_are_the_rows_and_their_neighbours():
    own = [configs.Forward(8, 8, 64, 8, 2), configs.Forward(8, 8, 32, 8, 2)]
    found = list(tune.candidates(own))
    assert found[:2] == own and len(set(found)) == len(found)
    for candidate in found[2:]:
        assert sum(a != b for a, b in zip(candidate, own[0], strict=True)) == 1
    assert configs.Forward(8, 8, 64, 4, 2) in found and configs.Forward(8, 8, 64, 8, 3) in found


def test_every_table_of_the_configurations_is_tuned():
    modules = {
        name: importlib.import_module(f"lgf_kernels.{name}.triton_configs") for name in of_every_family("triton_cases")
    }
    tables = {
        (name, table)
        for name, module in modules.items()
        for table, value in vars(module).items()
        if isinstance(value, dict) and table.isupper() and all(isinstance(rows, list) for rows in value.values())
    }
    assert {(tune.family(it), it.table) for it in TUNED} == tables


def test_rows_are_told_from_those_of_another_table():
    wide, narrow = configs.FORWARD[2], configs.FORWARD_ONE_GRAM[90, 2]
    cut = [row._replace(BLOCK_C=16) for row in wide]
    assert tune.comes_from(cut, configs.FORWARD) and not tune.comes_from(cut, configs.FORWARD_ONE_GRAM)
    assert tune.comes_from(narrow, configs.FORWARD_ONE_GRAM) and not tune.comes_from(narrow, configs.BACKWARD)


@pytest.mark.skipif(not launch.INTERPRETED, reason="the interpreter is off where there is a GPU")
def test_what_is_chosen_reaches_the_kernels_and_wrong_answers_are_not_timed(monkeypatch):
    chosen = []

    def run(kernel, grid, *arguments, **constants):
        chosen.append(constants)
        launch._launch(kernel, grid, *arguments, **constants)

    few = [configs.Forward(4, 8, 16, 8, 2), configs.Forward(4, 4, 16, 4, 1), configs.Forward(4, 4, 8, 4, 1)]
    monkeypatch.setattr(tune, "candidates", lambda own: few)
    case = replace(SMALL["small-lgf"], shape=(1, 2, 5, 6, 8), window=3)
    tuned = Tuned("FORWARD", case, "forward")
    before = launch._override
    with launch.overridden(run=run):
        rows = tune.tune(tuned, case, rounds=2)
    assert launch._override is before
    forwards = [(c["TILE_H"], c["TILE_W"], c["BLOCK_C"]) for c in chosen if "TEACHERS" in c or "HALVES" in c]
    assert {(4, 8, 16), (4, 4, 16)} <= set(forwards)
    by_name = {row["candidate"]: row for row in rows}
    assert by_name[str(few[0])]["status"] == "right" and by_name[str(few[0])]["median_ms"] > 0
    for row in rows:
        assert ("median_ms" in row) == (row["status"] == "right")


@pytest.mark.skipif(not launch.INTERPRETED, reason="the interpreter is off where there is a GPU")
def test_the_choice_reaches_the_backward_pass_too():
    """Which runs in a thread of autograd."""
    kinds = []

    def choose(rows):
        kinds.append(type(rows[0]))
        return rows[0]

    case = replace(SMALL["small-lgf"], shape=(1, 2, 5, 6, 8), window=3)
    with launch.overridden(choose=choose):
        correctness.answer(on_backend("triton", case), case)
    assert {configs.Forward, configs.Backward} <= set(kinds)


def test_overrides_nest_and_end_with_their_block():
    device = launch.torch.device("cpu")
    with launch.overridden(architecture=80), launch.overridden(run=print):
        assert launch.architecture(device) == 80 and launch._override.run is print
    assert launch.architecture(device) == 90 and launch._override == launch.Override()


def test_finished_tables_are_not_tuned_again_and_the_time_is_kept(monkeypatch, tmp_path, capsys):
    tuned = []
    monkeypatch.setattr(tune.gpu, "triton_unsupported_reason", lambda *_: None)
    monkeypatch.setattr(tune.results, "provenance", lambda device: {"commit": "abc"})
    monkeypatch.setattr(
        tune,
        "tune",
        lambda it, case, rounds: (
            tuned.append(it) or [{"family": tune.family(it), "table": it.table, "dtype": case.dtype}]
        ),
    )
    monkeypatch.setattr(tune, "as_text", lambda *_: "")
    about = {"family": "gram_flow", "dtype": "bfloat16"}
    options = Namespace(device="cuda", dtypes=("bfloat16",), rounds=2, minutes=1.0, resume=True, out=tmp_path)
    results.append(tmp_path / results.TUNE, [about | {"table": "BACKWARD", "commit": "abc"}])
    results.append(tmp_path / results.TUNE, [about | {"table": "FORWARD", "commit": "old"}])
    tune.run(options)
    assert tuned == [it for it in TUNED if it.table != "BACKWARD"]
    tune.run(options)
    assert len(tuned) == len(TUNED) - 1
    options.minutes, options.resume = -1.0, False
    tune.run(options)
    assert len(tuned) == len(TUNED) - 1 and "not begun" in capsys.readouterr().out


def test_failures_and_wrong_answers_are_shown():
    row = {"candidate": "Forward(1)", "status": "right", "median_ms": 2.0, "low_ms": 1.0, "high_ms": 3.0}
    faster = row | {"candidate": "Forward(2)", "median_ms": 1.5}
    failed = {"candidate": "Forward(3)", "status": "failed", "why": "OutOfResources: shared memory"}
    text = tune.as_text(TUNED[0], "bfloat16", [row, faster, failed, {"candidate": "Forward(4)", "status": "wrong"}])
    lines = text.splitlines()
    assert "Forward(2)" in lines[2] and "Forward(1)" in lines[3] and "1.5000 ms" in lines[2]
    assert "shared memory" in text and "Forward(4): WRONG" in text
