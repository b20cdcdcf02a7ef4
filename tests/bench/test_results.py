"""Rows on disk, comparisons of them, and the page that is made from them."""

import itertools
import json
import math
import os
import re

import compare_commits
import pytest
from lgf_bench import compare, report, results, table
from lgf_bench.families import CASES
from lgf_bench.families.base import each
from lgf_bench.table import baseline, described, of_floor, quartiles, ratio
from lgf_cli import main
from lgf_cli.errors import UserError
from support.bench_cases import row

from lgf_kernels.core import native


def times(median: float) -> dict:
    return {"median_ms": median, "low_ms": median - 1, "high_ms": median + 1}


def test_rows_are_added_and_a_torn_line_is_passed_over(tmp_path):
    file = tmp_path / "new" / "losses.jsonl"
    assert results.read(file) == []
    results.append(file, [row(), row(provider="native")])
    with open(file, "a") as lines:
        lines.write('{"case": "to')
    with open(file, "ab") as lines:
        lines.write(b"\n17\n\xff\xfe")
    results.append(file, [row(provider="portable")])
    assert [r["provider"] for r in results.read(file)] == ["eager", "native", "portable"]


def test_the_latest_run_of_a_case_counts_and_no_other():
    old = [row(), row(provider="native"), row(case="sam2")]
    new = [row(run="r2", provider="native")]
    kept = results.latest([*old, *new])
    assert [(r["case"], r["provider"], r["run"]) for r in kept] == [
        ("sam2", "eager", "r1"),
        ("cogvideox-latent", "native", "r2"),
    ]
    assert results.latest([row(), row(dtype="bfloat16", run="r2")])[0]["dtype"] == "float32"


def test_rows_of_other_things_that_have_a_shape_are_read_as_they_are(tmp_path):
    rows = [{"shape": [1, 2, 3, 4, 5]}, {"case": "a", "shape": [1, 3], "run": "r1"}, {"kernel": "b", "shape": "tile"}]
    results.append(tmp_path / "a", rows)
    assert results.read(tmp_path / "a") == rows


def test_rows_from_before_tensors_had_names_are_readable(tmp_path):
    def old(**values) -> dict:
        kept = {key: value for key, value in row(**values).items() if key not in ("tensors", "options")}
        return {"shape": [1, 3, 6, 9, 8], "teacher_channels": [8, 5], "window": 3} | kept | values

    relation = old(operator="token_relation", shape=[1, 3, 6, 8], teacher_channels=[5])
    logits = old(operator="local_gram_flow", teacher_channels=[])
    results.append(tmp_path / "a", [old(), old(case="small-cached"), relation, logits, row()])
    found = results.read(tmp_path / "a")
    assert [described(it) for it in found] == [
        "lgf_kl, student 1 x 3 x 6 x 9 x 8, teachers 1 x 3 x 6 x 9 x 8 and 1 x 3 x 6 x 9 x 5, window 3",
        "lgf_kl, student 1 x 3 x 6 x 9 x 8, teachers 1 x 2 x 6 x 9 x 9 and 1 x 2 x 6 x 9 x 9, window 3",
        "token_relation, student 1 x 3 x 6 x 8, teachers 1 x 3 x 6 x 5",
        "local_gram_flow, student 1 x 3 x 6 x 9 x 8, window 3",
        described(row()),
    ]
    assert all({"both", "run", "provider"} <= set(it) and "shape" not in it for it in found)


def test_the_committed_results_are_readable():
    """The first of them are from before tensors had names."""
    for folder in report.device_folders(results.RESULTS):
        for file in (results.LOSSES, results.SWEEPS):
            rows = results.read(folder / file)
            assert all(it["tensors"] and "options" in it and "shape" not in it for it in rows)
    rows = compare.load(results.RESULTS)
    known = [found for found in rows.values() if found["operator"] == "lgf_kl" and found["case"] in CASES]
    for found in known:
        case = CASES[found["case"]]
        shapes = {name: each(lambda t: list(t.shape), value) for name, value in case.layout().items()}
        assert found["tensors"] == shapes and found["options"]["window"] == case.window
    assert {"cogvideox-latent", "cogvideox-latent-cached", "window-3"} <= {found["case"] for found in known}


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    results.write(tmp_path / "page", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.write(tmp_path / "page", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["page"] and (tmp_path / "page").read_text() == "old"


def test_ratios_are_of_one_run_and_of_right_answers():
    eager, fast = row(), row(provider="native", both=times(4.0))
    assert baseline([fast, eager]) is eager and ratio(fast, eager) == 2.5
    better = row(provider="bmm", both=times(8.0))
    assert baseline([fast, eager, better]) is better, "the strongest alternative, and none of our own"
    assert ratio(row(run="r2"), eager) is None
    wrong = row(status="wrong")
    for key in ("forward", "backward", "both"):
        del wrong[key]
    assert baseline([wrong, fast]) is None and ratio(wrong, eager) is None
    assert of_floor(fast) == 25.0


def test_times_are_written_alike():
    assert quartiles({"low_ms": 1270.04, "high_ms": 1290.0}) == "1270.0 .. 1290.0"
    assert quartiles({"low_ms": 0.01234, "high_ms": 9.876}) == "0.0123 .. 9.88"


def test_the_folder_of_a_device_has_a_plain_name():
    name = results.device_folder("cpu").name
    assert name.startswith("cpu-") and name.endswith("-cores") and name == name.lower() and " " not in name


def test_a_lesser_instruction_set_has_a_folder_and_rows_of_its_own(monkeypatch):
    module, _ = native.load("cpu")
    if module is None:
        pytest.skip("no native module")
    best, *lesser = module.isas()
    for isa in (best, *lesser):
        module.set_isa(isa)
        assert results.provenance("cpu")["isa"] == isa
        assert results.device_folder("cpu").name.endswith("-cores" if isa == best else f"-{isa}")
    module.set_isa(best)
    monkeypatch.setattr(native, "load", lambda device: (None, "not built"))
    assert results.provenance("cpu")["isa"] is None and results.device_folder("cpu").name.endswith("-cores")


def test_compare_two_files(tmp_path, capsys):
    missing = row(provider="bmm", status="failed", why="x")
    del missing["both"]
    results.append(
        tmp_path / "a.jsonl", [row(), row(provider="native", both=times(8)), row(provider="portable"), missing]
    )
    results.append(
        tmp_path / "b" / "losses.jsonl",
        [row(both=times(10.1)), row(provider="native", both=times(4)), row(provider="bmm"), row(case="sam2"), row(device="other")],
    )  # fmt: skip
    assert main(["bench", "--compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[2]: line for line in text.splitlines() if line.split()[1:2] == ["float32"]}
    assert "2.00x" in lines["native"] and lines["native"].endswith("beyond the spread")
    assert "faster" not in text and "slower" not in text, "two runs of the same code differ too"
    assert "1.00x" in lines["eager"] and lines["eager"].endswith("within the spread")
    assert "no ratio" in lines["bmm"] and "x " not in lines["bmm"]
    assert "only in A: cogvideox-latent float32 portable" in text and "only in B: sam2 float32 eager" in text
    assert "two runs" in text and "different devices: a machine, other" in text


def test_compare_says_slower_and_needs_results(tmp_path):
    key = ("cogvideox-latent", "float32", "native")
    text = compare.as_text("a", "b", {key: row()}, {key: row(both=times(20.0))}, "", compare.verdict)
    assert text.endswith("slower")
    with pytest.raises(UserError, match="no results"):
        compare.load(tmp_path)


def test_commits_are_measured_in_turns_and_the_median_counts():
    order, values = [], {"a": [10.0, 14.0, 11.0, 10.0, 12.0], "b": [5.0, 6.0, 7.0, 5.0, 7.0]}

    def measure(name):
        order.append(name)
        median = times(values[name][order.count(name) - 1])
        return [row(forward=median, backward=median, both=median)]

    merged = compare_commits.in_turns(measure)
    assert order == ["a", "b"] * 5
    key = ("cogvideox-latent", "float32", "eager")
    assert merged["a"][key]["both"] == {"median_ms": 11.0, "low_ms": 9.0, "high_ms": 15.0}
    assert merged["b"][key]["both"] == {"median_ms": 6.0, "low_ms": 4.0, "high_ms": 8.0}
    assert compare.verdict(merged["a"][key]["both"], merged["b"][key]["both"]) == "faster"
    for near in (8.1, 11.9):
        assert compare.verdict(times(10.0), times(near)) == compare.WITHIN


def test_turns_that_differ_by_chance_make_no_verdict():
    """Ten turns of the same code, in any order: one of each 126 ways to deal them out puts all of one side first."""
    claimed = 0
    for of_a in itertools.combinations(range(10), 5):
        medians = {"a": iter(of_a), "b": iter(sorted(set(range(10)) - set(of_a)))}

        def measure(name, medians=medians):
            exact = dict.fromkeys(("median_ms", "low_ms", "high_ms"), next(medians[name]))
            return [row(forward=exact, backward=exact, both=exact)]

        ((a,), (b,)) = (found.values() for found in compare_commits.in_turns(measure).values())
        claimed += compare.verdict(a["both"], b["both"]) != compare.WITHIN
    assert claimed / math.comb(10, 5) == 1 / 126


def test_one_wrong_answer_of_a_commit_spoils_its_times():
    answers = iter(["right", "right", "wrong", *["right"] * 7])
    merged = compare_commits.in_turns(lambda name: [row(status=next(answers))])
    key = ("cogvideox-latent", "float32", "eager")
    assert merged["a"][key]["status"] == "wrong" and merged["b"][key]["status"] == "right"


@pytest.fixture
def folder(tmp_path):
    device = tmp_path / "results" / "a-machine"
    wrong = row(provider="bmm", status="wrong", gradient_error=0.5)
    failed = row(provider="natten", status="failed", why="RuntimeError: no")
    absent = row(provider="liger", status="absent", why="not installed: pip install liger-kernel")
    for broken in (wrong, failed, absent):
        del broken["both"], broken["forward"], broken["backward"]
    old = row(provider="native", both=times(1.0), run="r0")
    fast = row(provider="native", forward=times(1.5), backward=times(2.5), both=times(4.0))
    results.append(device / "losses.jsonl", [old, row(), fast, wrong, failed, absent])
    sweep = [
        row(case=f"sweep-pairs-{n}", sweep="pairs", size=n, both=times(5.0 * n), peak_bytes=n * n) for n in (2, 4, 8)
    ]
    results.append(device / "sweeps.jsonl", sweep)
    step = {
        "model": "CogVideoX-tiny", "parameters": 10e6, "tokens": 100, "plain": {"step_ms": 190.0, "peak_bytes": 2**30},
        "losses": {"native": {"step_ms": 200.0, "loss_ms": 3.0, "peak_bytes": 2**31}},
        "counted": "CogVideoX-5B", "counted_step_flop": 10**15, "counted_loss_flop": 4 * 10**9,
        "command": "lgf bench step", "commit": "abc",
    }  # fmt: skip
    results.append(device / results.STEP, [step | {"tokens": 99}, step])
    machine = {
        "device": "a machine",
        "threads": 2,
        "torch": "2",
        "clock": "wall",
        "copy": 1e10,
        "L2": 1e11,
        "gemm": {"float32": 5e10},
    }
    results.write_ceilings(device, machine)
    return tmp_path / "results"


def test_the_page_shows_the_results(folder):
    page = report.page(folder)
    lines = [" ".join(line.split()) for line in page.splitlines()]  # tables are padded
    cells = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert "2.50x" in cells["**native**"] and "| 1.5 ms | 2.5 ms | 4 ms | 3 .. 5 |" in cells["**native**"]
    assert "50.0 %" in cells["**native**"]  # 1e8 FLOP at 5e10 a second
    assert "WRONG" in cells["bmm"] and " ms" not in cells["bmm"] and "%" not in cells["bmm"]
    assert "FAILED: natten (RuntimeError: no)." in page and "natten" not in cells
    assert "Not here: liger (not installed: pip install liger-kernel)." in page
    assert (
        "| 1.5 % |" in cells["native"]
        and "0.0004 %" in page
        and "10 GB/s" in page
        and "`lgf bench step`, commit abc" in page
    )
    assert "100 video tokens" in page and "99 video tokens" not in page  # the last run of a configuration counts
    assert "![LGF-KL, pairs of frames" in page and "| eager | 1.00 | 2.00 |" in lines


def test_a_terminal_and_the_page_have_the_same_columns():
    rows = [row(), row(provider="native", both=times(4.0))]
    terminal, page = table.of_case(rows, table.TERMINAL), table.of_case(rows, table.PAGE)
    titles = [title.strip() for title in page.splitlines()[0].strip("|").split("|")]
    assert titles == re.split("  +", terminal.splitlines()[0]) == list(table.columns(rows[0]))
    cells = [cell.strip() for cell in page.splitlines()[3].strip("|").split("|")]
    assert cells == ["**native**", *re.split("  +", terminal.splitlines()[3])[1:]]


@pytest.mark.parametrize("other", [{"threads": 1}, {"torch": "3"}, {"clock": "cpu"}, {"device": "another"}], ids=str)
def test_ceilings_of_other_circumstances_are_no_floor(folder, other):
    """As when a folder of results of one thread gets ceilings of all threads."""
    file = folder / "a-machine" / results.CEILINGS
    results.write(file, json.dumps(json.loads(file.read_text()) | other))
    (line,) = (line for line in report.page(folder).splitlines() if line.startswith("| **native**"))
    assert "25.0 %" in line  # its own floor of 1 ms


def test_the_report_command_writes_page_and_pictures(folder, capsys):
    pytest.importorskip("matplotlib")
    assert main(["bench", "report", "--out", str(folder)]) == 0
    assert (folder / "performance.md").read_text() == report.page(folder)
    assert (folder / "performance" / "a-machine-pairs.png").stat().st_size > 5000


def test_the_committed_page_is_made_of_the_committed_results():
    """Letter by letter: no number in it was written by hand, none is older than its results."""
    assert report.PAGE_FILE.read_text() == report.page(results.RESULTS), (
        "run `lgf bench report` and commit what it writes"
    )


def test_no_results_no_page(tmp_path):
    for torn in (None, "", '{"case": "to'):
        if torn is not None:
            (tmp_path / results.LOSSES).write_text(torn)
        with pytest.raises(SystemExit, match="lgf bench: there are no results"):
            main(["bench", "report", "--out", str(tmp_path)])
