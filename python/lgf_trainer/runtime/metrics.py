"""Metrics of a run: curves, time, and an error for NaN. The host waits for the GPU only in `flush`."""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..step import Losses, Watch
from .errors import TrainerError, explained
from .files import write_atomically


class Stopwatch(Watch):
    """Stopwatch for the steps, and for the alignment term within them, forward and backward; on a GPU by its own clock."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._spans: list[list[Any]] = []
        self._steps: list[tuple[Any, Any, list[list[Any]]]] = []
        self._start = self._now()

    def begin(self) -> None:
        self._spans.append([self._now(), None])

    def end(self) -> None:
        self._spans[-1][1] = self._now()  # the last of several ends counts

    def step_done(self) -> None:
        now = self._now()
        self._steps.append((self._start, now, self._spans))
        self._start, self._spans = now, []

    def read(self) -> list[tuple[float, float]]:
        """Return (seconds, share of the alignment term) of the steps since the last call. Waits for the GPU."""
        if self._on_gpu:
            torch.cuda.synchronize()
        steps, self._steps = self._steps, []
        times = []
        for start, stop, spans in steps:
            seconds = self._seconds(start, stop)
            alignment = sum(self._seconds(*span) for span in spans if span[1] is not None)
            times.append((seconds, alignment / seconds))
        return times

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start: Any, stop: Any) -> float:
        return start.elapsed_time(stop) / 1000 if self._on_gpu else stop - start


class Metrics:
    """Losses of steps, collected on the device and written by `flush`.

    Args:
        path: of a file with one JSON object for each step, or None to write none (on all processes but the first).
        names: of the two losses.
        way_out: what to try when a loss is no longer a number.
        done: steps that an earlier run has made; what it wrote about later ones is dropped, they come again.
        mean: the mean of a tensor over all processes.
        log: (values, step) -> None, to the tracker.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        names: tuple[str, str],
        way_out: str,
        done: int,
        device: torch.device,
        mean: Callable[[Tensor], Tensor],
        log: Callable[[dict[str, float], int], None],
    ):
        self.path, self.done, self.mean, self.log = path, done, mean, log
        self.names, self.way_out = (*names, "gradient"), way_out
        self.watch = Stopwatch(device)
        self._pending: list[tuple[Losses, dict[str, float]]] = []
        if path:
            write_atomically(path, "".join(_lines_up_to(path, done)).encode())

    def add(self, losses: Losses, facts: dict[str, float]) -> None:
        """Take the losses of a step, as tensors, and what else is to be said about it."""
        self.watch.step_done()
        self._pending.append((losses, facts))

    def flush(self) -> dict[str, float]:
        """Write down all steps since the last call; returns what is known of the last one.

        Raises:
            TrainerError: a loss or a gradient was NaN or infinite; it says in which step, and what to try.
        """
        values = self.mean(torch.stack([torch.stack(losses) for losses, _ in self._pending]).float()).tolist()
        rows = []
        for row, (_, facts), (seconds, share) in zip(values, self._pending, self.watch.read(), strict=True):
            self.done += 1
            losses = dict(zip(self.names, row, strict=True))
            self._must_be_finite(losses)
            rows.append({**losses, **facts, "seconds": seconds, "share": share})
            self.log(rows[-1], self.done)
            if self.path:
                with open(self.path, "a") as file:
                    file.write(json.dumps({"step": self.done, **rows[-1]}) + "\n")
        self._pending = []
        return rows[-1]

    def _must_be_finite(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            if not math.isfinite(value):
                what = name if name == "gradient" else f"{name} loss"
                raise TrainerError(f"step {self.done}: the {what} is {value}. {self.way_out}")


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Return the lines of a file of metrics up to a step, without what a killed run has left half-written."""
    kept = []
    with explained(f"{path} cannot be read", OSError, way_out="Move it away"):
        lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    return kept
