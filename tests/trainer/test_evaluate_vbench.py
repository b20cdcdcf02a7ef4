"""Motion scores from VBench's files: the paper's tables come out, and what is no result file is refused."""

import doctest
import importlib
import json
from pathlib import Path

import pytest

pytest.importorskip("tyro")

import lgf_cli
from lgf_trainer.evaluate import main
from lgf_trainer.evaluation.vbench import NORMALISATION, extended_motion_score, motion_score, read_results, score_row
from lgf_trainer.runtime.errors import TrainerError

# Background and subject consistency, motion smoothness and Motion Score, from SAM2VideoX, tables 1 and 3.
TABLES = {
    "CogVideoX": (97.30, 94.43, 98.17, 94.80),
    "LoRA": (97.44, 93.47, 97.76, 94.02),
    "REPA": (97.41, 91.99, 97.31, 92.91),
    "SAM2VideoX": (97.88, 94.76, 98.45, 95.51),
    "HunyuanVid": (96.85, 95.32, 98.76, 95.62),
    "Track4Gen": (97.32, 94.67, 98.35, 95.11),
}
#: Its Extended Motion Score, and the mean of the normalised I2V scores that this implies, 4 extended - 3 motion.
EXTENDED = {
    "CogVideoX": (95.50, 97.60),
    "LoRA": (94.74, 96.90),
    "REPA": (93.77, 96.35),
    "SAM2VideoX": (96.03, 97.59),
    "HunyuanVid": (96.24, 98.10),
}
STRUCTURE = ("background_consistency", "subject_consistency", "motion_smoothness")


def write(path: Path, scores: dict[str, float]) -> Path:
    """A result file as VBench writes it: the mean, and a result for each video."""
    videos = [{"video_path": "./videos/a dog-0.mp4", "video_results": 0.5}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({dimension: [score, videos] for dimension, score in scores.items()}))
    return path


def scores(**more: float) -> dict[str, float]:
    return dict(zip(STRUCTURE, (0.9730, 0.9443, 0.9817), strict=True)) | more


@pytest.mark.parametrize("module", ["evaluation.vbench", "runtime.text", "evaluation.fvd"])
def test_docstring_examples(module):
    if module == "evaluation.fvd":
        pytest.importorskip("av")
    results = doctest.testmod(importlib.import_module(f"lgf_trainer.{module}"))
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("model", TABLES)
def test_the_papers_motion_scores(model, tmp_path):
    *parts, expected = TABLES[model]
    file = write(tmp_path / "x_eval_results.json", {d: p / 100 for d, p in zip(STRUCTURE, parts, strict=True)})
    assert f"{100 * motion_score(read_results(file)):.2f}" == f"{expected:.2f}"


@pytest.mark.parametrize("model", EXTENDED)
def test_the_papers_extended_scores(model):
    """From the parts of its table and the I2V scores that it implies: within the rounding of both."""
    *parts, motion = TABLES[model]
    extended, implied = EXTENDED[model]
    assert 4 * extended - 3 * motion == pytest.approx(implied, abs=1e-9)
    given = {d: p / 100 for d, p in zip(STRUCTURE, parts, strict=True)}
    for name in ("i2v_subject", "i2v_background"):
        low, high = NORMALISATION[name]
        given[name] = low + implied / 100 * (high - low)
    assert 100 * extended_motion_score(given) == pytest.approx(extended, abs=0.006)


def test_the_extended_score_by_hand():
    half = {dimension: low + 0.5 * (high - low) for dimension, (low, high) in NORMALISATION.items()}
    assert extended_motion_score(half) == pytest.approx(0.5)
    for dimension, weight in (("motion_smoothness", 0.25), ("i2v_subject", 0.125), ("i2v_background", 0.125)):
        assert extended_motion_score(half | {dimension: NORMALISATION[dimension][1]}) == pytest.approx(0.5 + weight / 2)
    given = scores(i2v_subject=0.97, i2v_background=0.98)
    fidelity = 0.5 * (0.97 - 0.1462) / 0.8538 + 0.5 * (0.98 - 0.2615) / 0.7385
    assert extended_motion_score(given) == pytest.approx((3 * motion_score(given) + fidelity) / 4)


def test_a_folder_of_one_file_for_each_dimension(tmp_path):
    for dimension, score in scores(dynamic_degree=0.45).items():
        write(tmp_path / "results" / f"{dimension}_eval_results.json", {dimension: score})
    (tmp_path / "results" / "x_full_info.json").write_text("[]")
    assert read_results(tmp_path / "results") == scores(dynamic_degree=0.45)
    write(tmp_path / "results" / "old" / "b_eval_results.json", {"motion_smoothness": 0.5})
    with pytest.raises(TrainerError, match="two scores for motion_smoothness"):
        read_results(tmp_path / "results")


def test_other_dimensions_are_left_alone(tmp_path):
    file = write(tmp_path / "a_eval_results.json", scores(aesthetic_quality=0.6, camera_motion=70.0))
    assert read_results(file) == scores()


def test_the_command_prints_and_writes_a_table(tmp_path, capsys):
    whole = scores(i2v_subject=0.97, i2v_background=0.98, dynamic_degree=0.4595)
    write(tmp_path / "base_eval_results.json", whole)
    write(tmp_path / "still" / "still_eval_results.json", whole | {"dynamic_degree": 0.4459})
    write(tmp_path / "lively" / "lively_eval_results.json", scores(dynamic_degree=0.9))
    names = ("base_eval_results.json", "still", "lively")
    paths = [str(tmp_path / name) for name in names]
    assert main(["vbench", *paths, "--output", str(tmp_path / "table.json")]) == 0
    heading, _, base, still, lively, warning = capsys.readouterr().out.splitlines()
    assert heading.split() == ["BC", "SC", "MS", "I2V-S", "I2V-B", "dynamic", "Motion", "Ext.", "Motion"]
    assert base.split() == ["base", "97.30", "94.43", "98.17", "97.00", "98.00", "45.95", "94.80", "95.32"]
    assert still.split()[0] == "still" and lively.split()[4:] == ["-", "-", "90.00", "94.80", "-"]
    assert warning.startswith("still moves less than base (dynamic degree 44.59 < 45.95)")
    written = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in written] == ["base", "still", "lively"]
    assert written[0]["motion_score"] == 100 * motion_score(whole) and written[2]["extended_motion_score"] is None


def test_rows_without_a_dynamic_degree_or_with_the_same_are_not_marked():
    from lgf_trainer.evaluation.vbench import report

    without, slow, alike = (score_row("a", scores()), *(score_row(n, scores(dynamic_degree=0.1)) for n in "bc"))
    for rows in ([without, slow], [slow, without], [slow, alike]):
        assert "moves less" not in report(rows)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no JSON", "is no result file of VBench"),
        ("[]", "is no result file of VBench"),
        ('{"motion_smoothness": 0.9}', "is no result file of VBench"),
        ('{"motion_smoothness": []}', "is no result file of VBench"),
        ('{"motion_smoothness": ["high", []]}', "is no result file of VBench"),
        ('{"motion_smoothness": [98.2, []]}', "motion_smoothness is 98.2, and VBench's scores are between 0 and 1"),
        ('{"motion_smoothness": [NaN, []]}', "motion_smoothness is nan"),
        ('{"motion_smoothness": [0.98, []]}', "a lacks background_consistency, subject_consistency"),
        ("{}", "a lacks background_consistency, motion_smoothness, subject_consistency"),
    ],
)
def test_bad_files_end_in_one_line(tmp_path, content, reason):
    (tmp_path / "a_eval_results.json").write_text(content)
    with pytest.raises(SystemExit) as end:
        lgf_cli.main(["eval", "vbench", str(tmp_path / "a_eval_results.json")])
    assert str(end.value).startswith("lgf eval: ") and reason in str(end.value) and "\n" not in str(end.value)


@pytest.mark.parametrize(
    ("words", "reason"), [([], "name result files"), (["gone"], "cannot be read"), (["."], "holds no")]
)
def test_nothing_to_read(tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainerError, match=reason):
        main(["vbench", *words])


def test_results_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    files = [write(tmp_path / name / "a_eval_results.json", scores()) for name in ("base", "lora")]
    assert main(["vbench", *map(str, files), str(write(tmp_path / "b_eval_results.json", scores()))]) == 0
    table = capsys.readouterr().out
    assert all(str(file) in table for file in files) and "\nb " in table
