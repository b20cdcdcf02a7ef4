"""What is written about a run, and what is said when losses are no longer numbers."""

import json

import pytest
import torch

pytest.importorskip("safetensors")

from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.runtime.metrics import Metrics, Stopwatch
from lgf_trainer.step import Losses

CPU = torch.device("cpu")


def make(path, done=0, logged=None, mean=lambda values: values):
    log = (lambda values, step: logged.append((step, values))) if logged is not None else (lambda values, step: None)
    names = ("diffusion", "alignment")
    return Metrics(path, names=names, way_out="Try less", done=done, device=CPU, mean=mean, log=log)


def losses(*values):
    return Losses(*map(torch.tensor, values))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_step_gets_a_line_when_asked(tmp_path):
    path, logged = tmp_path / "m.jsonl", []
    metrics = make(path, logged=logged)
    metrics.add(losses(1.0, 2.0, 3.0), {"weight": 0.5})
    metrics.add(losses(0.1, 0.2, 0.3), {"weight": 0.6})
    assert not lines(path)
    last = metrics.flush()
    assert [row["step"] for row in lines(path)] == [1, 2] == [step for step, _ in logged]
    assert lines(path)[0]["diffusion"] == 1.0 and last["weight"] == 0.6
    assert torch.tensor(last["gradient"]) == torch.tensor(0.3)  # to the last bit
    assert lines(path)[0]["seconds"] > 0 and lines(path)[0]["share"] == 0


def test_every_step_is_written_once(tmp_path):
    metrics = make(tmp_path / "m.jsonl")
    for value in (1.0, 2.0):
        metrics.add(losses(value, 0.0, 0.0), {})
        metrics.flush()
    assert [(row["step"], row["diffusion"]) for row in lines(tmp_path / "m.jsonl")] == [(1, 1.0), (2, 2.0)]


def test_means_over_processes_are_what_is_written(tmp_path):
    metrics = make(tmp_path / "m.jsonl", mean=lambda values: values / 2)
    metrics.add(losses(1.0, 2.0, 3.0), {})
    assert metrics.flush()["alignment"] == 1.0
    silent = make(None)
    silent.add(losses(1.0, 2.0, 3.0), {})
    assert silent.flush()["alignment"] == 2.0


def test_going_on_drops_what_comes_again_and_what_is_half_written(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "a": 1}\n[1]\n{"a": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "dif')
    metrics = make(path, done=2)
    metrics.add(losses(1.0, 2.0, 3.0), {})
    metrics.flush()
    assert [row["step"] for row in lines(path)] == [1, 2, 3] and lines(path)[0] == {"step": 1, "a": 1}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("place", "name"), [(0, "diffusion loss"), (1, "alignment loss"), (2, "gradient")])
def test_what_is_no_number_stops_the_run(tmp_path, bad, place, name):
    metrics = make(tmp_path / "m.jsonl", done=4)
    metrics.add(losses(1.0, 2.0, 3.0), {})
    values = [1.0, 2.0, 3.0]
    values[place] = bad
    metrics.add(losses(*values), {})
    with pytest.raises(TrainerError, match=rf"step 6: the {name} is {bad}. Try less"):
        metrics.flush()


def test_the_stopwatch_counts_the_alignment_alone(monkeypatch):
    now = [0.0]

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(Stopwatch, "_now", lambda _: now[0])
    watch = Stopwatch(CPU)
    for factor in (1, 10):
        watch.begin()
        wait(2 * factor)
        watch.end()
        wait(3 * factor)
        watch.begin()  # backward: of two ends the later one counts
        wait(1 * factor)
        watch.end()
        wait(1 * factor)
        watch.end()
        watch.step_done()
    assert watch.read() == [(7, 4 / 7), (70, 4 / 7)]
    assert watch.read() == []


def test_a_term_that_never_ends_is_not_counted():
    watch = Stopwatch(CPU)
    watch.begin()
    watch.step_done()
    assert watch.read()[0][1] == 0
