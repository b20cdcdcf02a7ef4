"""What a log file gets of long work: a few lines of their own."""

import re
import sys

import pytest

pytest.importorskip("tqdm")

from lgf_trainer.runtime import progress as module
from lgf_trainer.runtime.progress import progress


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_quick_work_is_two_lines(capsys):
    with progress(total=1200, desc="training", unit="step") as bar:
        for step in range(1200):
            bar.set_postfix(loss=step, refresh=False)
            bar.update()
    first, last = lines(capsys)
    assert first.startswith("training: 0/1200 [00:00<")
    assert re.fullmatch(r"training: 1200/1200 \[00:00<00:00, .*step/s, loss=1199\]", last)


def test_other_lines_stay_apart(capsys):
    for _ in progress(range(1), "extracting"):
        print("something else", file=sys.stderr)
    first, other, last = lines(capsys)
    assert first.startswith("extracting: 0/1") and other == "something else" and last.startswith("extracting: 1/1")


def test_long_work_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    list(progress(range(3), "extracting"))
    assert [line.split(" [")[0] for line in lines(capsys)][:4] == [f"extracting: {n}/3" for n in range(4)]


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    list(progress(range(3), "measuring"))
    assert "\r" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["{desc} {bar:30} {n_fmt}/{total_fmt}", "{desc} {n_fmt}/{total_fmt}"])
def test_a_format_of_its_own_loses_its_bar(capsys, shape):
    list(progress(range(3), "measuring", bar_format=shape))
    assert lines(capsys) == ["measuring 0/3", "measuring 3/3"]
