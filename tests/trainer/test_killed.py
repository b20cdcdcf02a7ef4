"""Killed anywhere, a command that is started again goes on as if nothing had happened."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("tyro")

from lgf_trainer.data.cache import WindowCache
from support.clips import write_clip
from trainer.kill_points import IN_A_TRAINING, IN_AN_EXTRACTION
from trainer.processes import environment
from trainer.run_outputs import losses, same, weights
from trainer.training_data import extraction, tiny

#: Where continuous integration kills: while a file is written, before and after something has its name, between two
#: files of the result.
ONE_OF_EACH_KIND = {
    "a file of the second checkpoint",
    "before the second is renamed",
    "after the second is renamed",
    "publishing",
    "before the second window has its name",
}


def some_often(points):
    return [pytest.param(name, marks=() if name in ONE_OF_EACH_KIND else pytest.mark.slow) for name in points]


@pytest.fixture(scope="module")
def start():
    """`start(words, point)`: how `lgf WORDS` ended, killed at that point if one is given, and the optimiser steps that it made."""
    words = [sys.executable, "-P", Path(__file__).with_name("kill_points.py")]
    with subprocess.Popen(
        words, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def ask(words, point=None):
            print(json.dumps({"words": words, "point": point}), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())
            return answer["ended"], answer["steps"]

        yield ask


@pytest.fixture(scope="module")
def training(tiny_place, start, tmp_path_factory):
    """The words of a training into a folder, and a whole one with the number of its steps."""
    options = {"training__steps": 4, "training__ema": 0.9, "model__dropout": 0.1, "alignment__schedule": "0 0 4 1"}

    def words(output):
        return ["train", "sam2videox", *tiny(tiny_place, run__output=output, **options)]

    whole = tmp_path_factory.mktemp("whole")
    ended, steps = start(words(whole))
    assert ended == 0
    return words, whole, steps


@pytest.mark.parametrize("point", some_often(IN_A_TRAINING))
def test_a_training_loses_a_step_at_most(start, training, tmp_path, point):
    words, whole, needed = training
    ended, steps = start(words(tmp_path), point)
    assert ended == -signal.SIGKILL, "it was not killed where it should have been"
    ended, more = start(words(tmp_path))
    assert ended == 0
    assert steps + more <= needed + 1, "it lost more than one step"
    assert losses(tmp_path) == losses(whole)
    assert same(weights(tmp_path), weights(whole)) and same(weights(tmp_path / "ema"), weights(whole / "ema"))
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock"], "nothing else is left behind"


@pytest.mark.parametrize("point", some_often(IN_AN_EXTRACTION))
def test_an_extraction_keeps_every_window_that_has_its_name(start, tiny_place, tmp_path, point):
    video = write_clip(tmp_path / "dog.mp4", frames=20)

    def words(folder):
        return extraction(video, tmp_path / folder, tiny_place / "model", "--stride", 5, "--teacher", "none")

    def windows(folder):
        cache = WindowCache(tmp_path / folder)
        return {key: cache.path(key).read_bytes() for key in cache.keys()}

    assert start(words("whole"))[0] == 0 and len(windows("whole")) == 3
    assert start(words("killed"), point)[0] == -signal.SIGKILL
    kept = windows("killed")
    assert len(kept) == 1 and kept.items() <= windows("whole").items()
    assert start(words("killed"))[0] == 0
    assert windows("killed") == windows("whole")
    report = json.loads((tmp_path / "killed" / "report.json").read_text())
    assert report["present"] == list(kept) and report["damaged"] == 0
