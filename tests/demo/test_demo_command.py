"""The comparison is fair, the costs are of one and the same number, and the command does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lgf_cli import main
from lgf_demo import cost
from support.clips import write_clip
from support.memory_here import memory_here

for package in ("av", "diffusers", "matplotlib", "peft", "tqdm"):
    pytest.importorskip(package)

tasks = pytest.importorskip("lgf_demo.tasks")
training = pytest.importorskip("lgf_demo.training")
model = pytest.importorskip("lgf_demo.model")

from lgf_demo.losses import lgf  # noqa: E402
from lgf_trainer.runtime.text import format_table  # noqa: E402

ROOT = Path(__file__).parents[2]
GRID = (3, 8, 8)


@pytest.fixture(scope="module")
def task():
    return tasks.generated_task(0, GRID, train=3, held_out=2)


def trained(task, weight: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    student = model.make_student(0, GRID)
    history = training.train(
        student, task.train, training.Recipe(steps=3, seed=0), lgf(None), weight, on_step=lambda: None
    )
    return student.state_dict(), history


def test_both_arms_start_alike_and_see_the_same(task):
    (plain, history), (aligned, aligned_history) = trained(task, 0.0), trained(task, 0.5)
    assert torch.equal(history[0], aligned_history[0])  # one initialisation, one clip, one noise
    untouched = model.make_student(0, GRID).state_dict()
    for name, value in plain.items():
        changed = not torch.equal(value, untouched[name])
        assert not changed or "lora" in name, f"{name} must be frozen in the arm without the loss"
        if "lora" not in name and not name.startswith("projector"):
            assert torch.equal(aligned[name], value)
    assert any(not torch.equal(aligned[name], plain[name]) for name in plain if name.startswith("projector"))
    assert any(not torch.equal(aligned[name], plain[name]) for name in plain if "lora" in name)


def test_a_log_file_gets_a_few_lines(capsys):
    from lgf_demo.main import _progress

    with _progress(1200, "training") as bar:
        for _ in range(1200):
            bar.update()
    assert [line.split() for line in capsys.readouterr().err.splitlines()] == [
        ["training", "0/1200", "00:00"],
        ["training", "1200/1200", "00:00"],
    ]


def test_training_repeats_itself(task):
    assert torch.equal(trained(task, 0.5)[1], trained(task, 0.5)[1])


def test_held_out_clips_are_not_trained_on(task):
    for held_out in task.held_out.latents:
        assert not any(torch.equal(held_out, clip) for clip in task.train.latents)


def test_the_students_projector_begins_as_an_isometry():
    projector = model.make_student(0, GRID).projector
    features = torch.randn(1, *GRID, 128)
    torch.testing.assert_close(projector(features).norm(dim=-1), features.norm(dim=-1))


def test_latents_keep_the_energy_of_smooth_pictures():
    latents = model.encode(torch.full((1, 1, 3, 16, 24), 0.5))
    assert latents.shape == (1, 1, 16, 4, 6)
    torch.testing.assert_close(latents[0, 0, :3].square().sum(), torch.tensor(1.4**2 * 3 * 16 * 24 * 0.25))
    assert latents[0, 0, 3:].abs().max() < 1e-5


@pytest.fixture
def measured_here(monkeypatch):
    """Memory in this process: most of what a fresh one costs is its start."""
    monkeypatch.setattr(cost, "peak_memory", memory_here)


@pytest.mark.parametrize("where", ["here", pytest.param("in fresh processes", marks=pytest.mark.slow)])
def test_memory_of_unfolding_is_many_copies_of_the_features(request, where):
    if where == "here":
        request.getfixturevalue("measured_here")
    shape = (1, 3, 16, 24, 64)
    costs = cost.measure_cost(shape, rounds=2)
    features_mb = torch.Size(shape).numel() * 4 / 1e6
    assert costs["F.unfold"]["peak_mb"] > 20 * features_mb
    assert costs[cost.LIBRARY]["peak_mb"] < costs["F.unfold"]["peak_mb"] / 2
    losses = [figures["loss"] for figures in costs.values()]
    assert max(losses) - min(losses) < 1e-5 and all(figures["ms"] > 0 for figures in costs.values())


@pytest.mark.parametrize(("backend", "form"), [("portable", "portable"), ("reference", "eager")])
def test_the_cost_is_of_the_backend_that_is_asked_for(monkeypatch, backend, form):
    asked, real = [], cost.provider
    monkeypatch.setattr(cost, "provider", lambda name, case: asked.append(name) or real(name, case))
    monkeypatch.setattr(cost, "peak_memory", lambda case, name: asked.append(name))
    cost.measure_cost((1, 2, 4, 4, 8), 2, backend)
    assert asked == 2 * [form, "eager-unfold", "eager"]


def in_a_process(arguments: list[str]) -> str:
    """What the command prints, started as a user does."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "lgf_cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("start", ["here", pytest.param("in a process", marks=pytest.mark.slow)])
def test_quick_demo_writes_a_report_in_one_file(request, tmp_path, capsys, start):
    arguments = ["demo", "--quick", "--output", str(tmp_path / "out")]
    if start == "here":
        request.getfixturevalue("measured_here")
        assert main(arguments) == 0
        said = capsys.readouterr().out
    else:
        said = in_a_process(arguments)
    html = (tmp_path / "out" / "report.html").read_text()
    for wanted in ("trained with LGF-KL", "no motion", "the teacher itself", "F.unfold", "Seed 0"):
        assert wanted in html
    assert html.count("data:image/png;base64,") == 3
    assert not re.search(r"(src|href)=\"(?!data:)", html), "the report must not need other files"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["motion.png", "report.html"]
    for wanted in ("trained without LGF-KL", "peak memory", str(tmp_path / "out" / "report.html")):
        assert wanted in said


def test_quick_demo_on_a_video(measured_here, tmp_path, capsys):
    video = write_clip(tmp_path / "a.mp4", frames=24)
    assert main(["demo", "--quick", "--video", str(video), "--output", str(tmp_path / "out")]) == 0
    assert "PSNR" in capsys.readouterr().out and "a.mp4" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--video", "gone.mp4"], "no such file"),
        (["--seed", "-1"], "must be from 0 to 2^31 - 1, got -1"),
        (["--output", __file__], "is a file. Name a directory"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody may write")
def test_a_folder_that_cannot_be_written_is_refused_before_the_training(monkeypatch, capsys):
    monkeypatch.setattr("lgf_demo.main.compare", lambda *_: pytest.fail("trained"))
    assert main(["demo", "--quick", "--output", "/proc/self"]) == 2
    assert "lgf demo: " in capsys.readouterr().err.splitlines()[-1]


def test_an_interruption_is_no_traceback(monkeypatch, capsys, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lgf_demo.main.compare", interrupted)
    assert main(["demo", "--quick", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("lgf demo: interrupted.\n") and not list(tmp_path.iterdir())


def test_missing_packages_name_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("lgf_demo.cli.REQUIRED", ("no_such_package",))
    assert main(["demo"]) == 2
    assert 'pip install "lgf-kernels[train]"' in capsys.readouterr().err


def test_tables_are_aligned():
    assert format_table([["name", "x"], ["a", "1.00"]]) == "name     x\n----------\na     1.00"


@pytest.mark.parametrize("steps", ["0", "-1", "1e3", "many"])
def test_steps_that_are_no_number_of_steps_are_named(steps, capsys):
    with pytest.raises(SystemExit):
        main(["demo", f"--steps={steps}"])
    assert f"--steps: must be a whole number of at least 1, got {steps!r}" in capsys.readouterr().err
