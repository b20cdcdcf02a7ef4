"""The study of all losses is fair, goes on from what is there, and its table and page say what was measured."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lgf_cli import main
from PIL import Image
from support.memory_here import memory_here

for package in ("av", "diffusers", "matplotlib", "peft", "tqdm"):
    pytest.importorskip(package)

clips = pytest.importorskip("lgf_demo.clips")
study = pytest.importorskip("lgf_demo.study")

from lgf_demo import study_report  # noqa: E402
from lgf_demo.losses import LOSSES, REDUCTION, reduced  # noqa: E402
from lgf_demo.training import Reading  # noqa: E402
from lgf_demo.which_loss import chosen  # noqa: E402

from lgf_kernels import lgf_kl_loss, point_correspondence_loss  # noqa: E402

ROOT = Path(__file__).parents[2]
TINY = study.Settings(
    steps=2, seeds=(0, 1), grid=(3, 6, 9), train_clips=2, held_out_clips=2, cost_shape=(1, 2, 6, 6, 16), rounds=2
)


@pytest.fixture(scope="module")
def world():
    return study.World(TINY, 0, None)


@pytest.fixture
def measured_here(monkeypatch):
    """Memory in this process: most of what a fresh one costs is its start."""
    monkeypatch.setattr(study, "peak_memory", memory_here)


def batch(world):
    ((one,),) = [next(study.batches(world.train, 0, study.make_scheduler()))]
    return one


def test_the_tracks_are_those_of_the_scene():
    clip = clips.make_clip(3, 4, 8, 10)
    found = clips.tracks(clip, 40, seed=0)
    t, y, x = found["queries"].unbind(-1)
    assert (t == t.round()).all() and ((y >= 0) & (y <= 7) & (x >= 0) & (x <= 9)).all()
    own = found["tracks"][torch.arange(40), t.long()]
    torch.testing.assert_close(own, torch.stack([y, x], -1), rtol=0, atol=1e-4)
    assert (found["visible"][torch.arange(40), t.long()] == 1).all() and 0 < found["visible"].mean() < 1
    part, uv = clip.scene.surface(int(t[5]), (found["queries"][5:6, 1:] + 0.5) * clips.TOKEN)
    torch.testing.assert_close(found["tracks"][5, 2], clip.scene.locate(2, part, uv)[0] / clips.TOKEN - 0.5)


def test_cells_are_means_of_their_tokens():
    features = torch.randn(1, 2, 6, 9, 4)
    cells = reduced(features, REDUCTION)
    assert cells.shape == (1, 2, 2, 3, 4) and reduced(features, 1) is features
    torch.testing.assert_close(cells[0, 1, 1, 2], features[0, 1, 3:, 6:].mean((0, 1)))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "none"])
def test_every_loss_is_weighted_to_the_first_gradient_of_the_reference(world, name):
    weight = 0.5 * world.first_gradient(study.REFERENCE) / world.first_gradient(name)
    student, objective = world._student(name), LOSSES[name].objective(None)
    lengths = []
    stream = study.batches(world.train, 0, study.make_scheduler())
    for (one,) in (next(stream) for _ in range(study.FIRST)):
        raw = student.predict_and_capture(one.hidden, **one.conditions)[1].detach().requires_grad_()
        (weight * objective(student.projector(raw), one.targets)).backward()
        lengths.append(raw.grad.norm())
    assert torch.stack(lengths).mean().item() == pytest.approx(0.5 * world.first_gradient(study.REFERENCE), rel=1e-4)


def test_losses_are_the_librarys(world):
    one = batch(world)
    projected = torch.randn(1, *TINY.grid, 96)
    teachers = study_teachers(one.targets)
    found = {name: loss.objective(None) for name, loss in LOSSES.items() if loss.objective}
    torch.testing.assert_close(found["lgf-kl"](projected, one.targets), lgf_kl_loss(projected, teachers))
    torch.testing.assert_close(
        found["lgf-l2"](projected, one.targets), lgf_kl_loss(projected, teachers, divergence="l2")
    )
    values = [one.targets[name] for name in ("queries", "tracks", "visible")]
    torch.testing.assert_close(found["points"](projected, one.targets), point_correspondence_loss(projected, *values))
    distinct = {name: found[name](projected, one.targets).item() for name in found if not LOSSES[name].joined}
    assert len({round(value, 6) for value in distinct.values()}) == len(distinct)


def test_relations_to_several_teachers_are_their_mean(world):
    targets = batch(world).targets
    student, objective = torch.randn_like(targets["teacher 0"]), LOSSES["videorepa"].objective(None)
    one, other = (objective(student, {"teacher": targets[f"teacher {i}"]}) for i in range(2))
    torch.testing.assert_close(objective(student, targets), (one + other) / 2)


def test_motion_is_read_at_the_noise_step_that_is_shown(world, monkeypatch):
    seen = []

    def reading(_, split, step):
        return Reading(torch.full((len(split), 1), float(step)), None, 0.01 * step)

    monkeypatch.setattr(study, "read_at", reading)
    monkeypatch.setattr(study, "motion_of", lambda raw: seen.append(raw[0].item()))
    monkeypatch.setattr(study.World, "_probed", lambda self, *of: seen.extend(raw[0].item() for raw in of))
    monkeypatch.setattr(study, "end_point_error", lambda *_: 0.0)
    found = world.scores(None)
    assert seen == [study.SHOWN_STEP] * 3
    assert found["diffusion"] == pytest.approx(0.01 * sum(study.NOISE_STEPS) / len(study.NOISE_STEPS))


def study_teachers(targets):
    return [targets["teacher 0"], targets["teacher 1"]]


def test_all_arms_of_a_seed_begin_alike(world):
    plain, joined = (
        world._student("lgf-kl").transformer.state_dict(),
        world._student("patch-cosine").transformer.state_dict(),
    )
    assert all(torch.equal(plain[name], value) for name, value in joined.items())
    assert world._student("patch-cosine").projector.mlp[-1].out_channels == 2 * 96


def test_a_linear_map_is_found():
    x, w = torch.randn(500, 6), torch.randn(6, 2)
    torch.testing.assert_close(study.ridge(x, x @ w, strength=1e-9), w, rtol=1e-4, atol=1e-4)
    assert study.ridge(x, x @ w, strength=10.0).norm() < 0.2 * w.norm()


def rows_of(folder):
    return [json.loads(line) for line in (folder / study.RUNS).read_text().splitlines()]


def run_tiny(folder, losses, settings=TINY):
    return list(study.run(folder, settings, losses, None))


def test_a_study_that_was_stopped_goes_on_and_repeats_itself(measured_here, tmp_path, monkeypatch):
    whole = run_tiny(tmp_path / "whole", ["none", "gram"])
    assert whole == [f"{n}, seed {s}" for s in (0, 1) for n in (study.BEFORE, "none", "gram")] + ["cost of gram"]
    stopped = study.run(tmp_path / "part", TINY, ["none", "gram"], None)
    assert [next(stopped) for _ in range(4)] == whole[:4]
    stopped.close()
    with (tmp_path / "part" / study.RUNS).open("a") as file:
        file.write('{"loss": "none", "se')  # a row that was cut off
    assert run_tiny(tmp_path / "part", ["none", "gram"]) == whole[4:]
    one, other = (study_report.runs_by_loss(tmp_path / place, TINY) for place in ("whole", "part"))
    for name in (study.BEFORE, "none", "gram"):
        for measure in ("epe", "probe_epe", "diffusion"):
            assert [row[measure] for row in one[name]] == [row[measure] for row in other[name]]
    assert run_tiny(tmp_path / "part", ["none", "gram"]) == []
    longer = study.Settings(**{**vars(TINY), "steps": 3, "seeds": (0,)})
    assert study.missing(tmp_path / "part", longer, ["none"]) == ([(study.BEFORE, 0), ("none", 0)], [])


def test_the_command_writes_table_and_picture_and_goes_on(measured_here, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lgf_demo.which_loss.QUICK", TINY)
    words = ["demo", "--losses", "lgf-kl", "none", "--quick", "--output", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert [(row["loss"], row["seed"]) for row in rows] == [
        (n, s) for s in (0, 1) for n in (study.BEFORE, "none", "lgf-kl")
    ]
    assert all(row["commit"] and row["command"] for row in rows)
    text = (tmp_path / study_report.PAGE).read_text()
    errors = [row["epe"] for row in rows if row["loss"] == "lgf-kl"]
    expected = f"{sum(errors) / 2:.2f} ({min(errors):.2f} to {max(errors):.2f})"
    assert re.search(rf"^\| LGF-KL \| SAM2VideoX, 0.5 \| 0.5 \| {re.escape(expected)} \|", text, re.MULTILINE)
    assert expected in said and "no motion" in text and "MiB" in text
    assert np.array(Image.open(tmp_path / study_report.PICTURE).convert("RGBA")).std() > 1
    before = (tmp_path / study.RUNS).read_bytes()
    assert main(words) == 0
    assert (tmp_path / study.RUNS).read_bytes() == before
    assert "6 of 6 runs are in" in capsys.readouterr().out


def test_names_of_losses():
    assert chosen(["all", "all"]) == chosen(["none", "all"]) == list(LOSSES) and chosen(["none", "none"]) == ["none"]
    assert chosen(["all"]) == list(LOSSES) and chosen(["points", "none"]) == ["none", "points"]


def test_help_lists_every_loss(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.partition("\nlosses:\n")[2].splitlines()]
    assert listed == [[name, loss.label] for name, loss in LOSSES.items()]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--losses", "lfg"], "there is no 'lfg'. There are: all, " + ", ".join(LOSSES)),
        (["--losses", "all", "--video", "dog.mp4"], "Leave --video or --losses out"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, reason, tmp_path, capsys):
    assert main(["demo", *words, "--output", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "out").exists()


def test_the_page_is_that_of_the_recorded_results():
    """docs/which-loss.md says what the files in benchmarks/results say, and is there if they are."""
    recorded = sorted(file.parent for file in (ROOT / "benchmarks" / "results").rglob(study.RUNS))
    page = ROOT / "docs" / study_report.PAGE
    assert page.exists() == bool(recorded) and len(recorded) <= 1
    for folder in recorded:
        (steps,) = {row["steps"] for row in rows_of(folder)}
        settings = study.Settings(steps=steps)
        runs, costs = study_report.runs_by_loss(folder, settings), study_report.costs_by_loss(folder, settings)
        assert set(runs) == {study.BEFORE, *LOSSES} and all(len(rows) == len(settings.seeds) for rows in runs.values())
        assert page.read_text() == study_report.page(runs, costs, settings)


def test_the_outcome_is_read_from_the_ranges():
    def of(*pairs):
        return [{"epe": epe, "probe_epe": probe} for epe, probe in pairs]

    runs = {
        "none": of((1.3, 1.2), (1.2, 1.3)),
        "lgf-kl": of((0.8, 1.25), (0.9, 1.1)),
        "gram": of((0.9, 1.4), (1.25, 1.5)),
    }
    read, probe = study_report.outcome(runs).splitlines()
    assert "the least error has LGF-KL, 0.85 (0.80 to 0.90)" in read and "overlap with it: Gram matrices" in read
    assert read.endswith("in every seed: LGF-KL.") and probe.endswith("in every seed: none.")
    assert "overlap with it: none (diffusion alone)." in probe
    runs[study.BEFORE] = [{"context": {"no motion": 1.2}}]
    read, probe = study_report.outcome(runs).splitlines()
    assert "finds next to none" in probe and "finds next to none" not in read
