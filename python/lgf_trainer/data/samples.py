"""From the cache to batches: a sample is a function of the seed and its number, and of nothing else.

Sample number `n` of a run (step * batch + place in the batch) decides which window it is, its posterior sample, noise,
noise step and dropout. So the position in the data is the number of the step: a run that goes on where it was killed, or
with another number of processes, sees what it would have seen.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from multiprocessing.util import get_temp_dir
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..generators.base import Generator
from ..runtime.errors import TrainerError
from .cache import WindowCache


def mix(*numbers: int | str) -> int:
    """A seed that depends on all the numbers, evenly."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little")


class WindowTensors(Dataset):
    """Tensors of windows without end: every epoch all windows, in an order of its own that depends on the seed.

    Args:
        cache: of windows.
        keys: of those to take.
        targets: names of the tensors.
        seed: of the order.
    """

    def __init__(self, cache: WindowCache, keys: list[str], targets: tuple[str, ...], seed: int):
        self.cache, self.keys, self.targets, self.seed = cache, keys, targets, seed
        self._shuffled: tuple[int, list[int]] | None = None  # (epoch, order) of the last one that was asked for

    def key(self, number: int) -> str:
        """Return which window a sample is."""
        epoch, place = divmod(number, len(self.keys))
        if self._shuffled is None or self._shuffled[0] != epoch:
            rng = torch.Generator().manual_seed(mix(self.seed, "epoch", epoch))
            self._shuffled = epoch, torch.randperm(len(self.keys), generator=rng).tolist()
        return self.keys[self._shuffled[1][place]]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a window in float32."""
        return {name: tensor.float() for name, tensor in self.chosen(number, self.window(number)).items()}

    def window(self, number: int) -> dict[str, Tensor]:
        """Return all tensors of the window that a sample is."""
        return self.cache.read(self.key(number)).tensors

    def chosen(self, number: int, window: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the targets of a window, which has them as all windows of its cache do, or is refused."""
        try:
            return {name: window[name] for name in self.targets}
        except KeyError as error:
            raise TrainerError(
                f"{self.cache.path(self.key(number))} has no {error}. Remove it, extract again"
            ) from error


class TrainingSamples(WindowTensors):
    """The endless sequence of samples of a video model.

    Args:
        cache: of windows.
        generator: the model that is trained.
        targets: tensors of a window that the objective reads.
        seed: of order, noise, noise levels and dropout.
        image_dropout: share of samples whose image is zeros; of no effect on a model that takes no image.
        caption_dropout, no_caption: share of samples with the tensors of the empty caption instead of their own.
    """

    def __init__(
        self,
        cache: WindowCache,
        generator: Generator,
        targets: tuple[str, ...],
        *,
        seed: int,
        image_dropout: float = 0.0,
        caption_dropout: float = 0.0,
        no_caption: dict[str, Tensor] | None = None,
    ):
        super().__init__(cache, cache.keys(), targets, seed)
        self.generator, self.image_dropout = generator, image_dropout
        self.caption_dropout, self.no_caption = caption_dropout, no_caption

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(mix(self.seed, "sample", number))
        window = self.window(number)
        latents = self.generator.latents(window["latents"], rng)
        sample = {
            "latents": latents,
            "noise": torch.randn(latents.shape, generator=rng),
            "timestep": self.generator.timestep(rng),
            **{name: window[name].float() for name in self.generator.captions},
        }
        without_image, without_caption = torch.rand(2, generator=rng).tolist()
        if self.generator.image_to_video:
            image = self.generator.image(window, rng, latents)
            without = without_image < self.image_dropout
            sample |= {name: torch.zeros_like(tensor) if without else tensor for name, tensor in image.items()}
        if without_caption < self.caption_dropout:
            sample |= self.no_caption
        return sample | self.chosen(number, window)


class BatchNumbers:
    """For every forward pass of one process, the numbers of its samples.

    Args:
        steps: of the run that are to be made.
        batch: samples of a step, over all processes and accumulation.
        per_process: samples of a forward pass.
        rank, processes: which process this is, of how many.
    """

    def __init__(self, steps: range, batch: int, per_process: int, rank: int = 0, processes: int = 1):
        self.steps, self.batch, self.size = steps, batch, per_process
        self.rank, self.processes = rank, processes
        self.accumulation, rest = divmod(batch, per_process * processes)
        if rest or not self.accumulation:
            raise TrainerError(
                f"training.batch = {batch} is no multiple of run.per_process = {per_process} times {processes} processes. "
                "Change one of them"
            )

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            for turn in range(self.accumulation):
                first = step * self.batch + (turn * self.processes + self.rank) * self.size
                yield list(range(first, first + self.size))


def load_samples(
    samples: TrainingSamples, numbers: BatchNumbers, workers: int, pin: bool
) -> Iterator[list[dict[str, Tensor]]]:
    """For every step, the collated samples of its forward passes."""
    if workers:
        _keep_sockets_near()
    loader = DataLoader(
        _Readable(samples), batch_sampler=numbers, num_workers=workers, collate_fn=_collate, pin_memory=pin
    )
    step = []
    for batch in loader:
        if isinstance(batch, TrainerError):
            raise batch
        step.append(batch)
        if len(step) == numbers.accumulation:
            yield step
            step = []


def _keep_sockets_near() -> None:
    """See to it that multiprocessing's folder has a short path, for as long as this process lives.

    Workers hand tensors over through sockets in it, and the path of a socket has 103 bytes at most (macOS; Linux: 107). In a
    deep TMPDIR they would fail behind the scenes, and training would wait for them forever.
    """
    if os.name != "posix" or len(os.fsencode(tempfile.gettempdir()) + b"/pymp-12345678/listener-12345678") <= 103:
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        get_temp_dir()  # makes it, and keeps it for itself and for the workers
    finally:
        tempfile.tempdir = before


class _Readable(Dataset):
    """Hands mistakes over as samples: a worker that raised would bury the message in a traceback."""

    def __init__(self, samples: TrainingSamples):
        self.samples = samples

    def __getitem__(self, number: int) -> dict[str, Tensor] | TrainerError:
        try:
            return self.samples[number]
        except TrainerError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    errors = [sample for sample in samples if isinstance(sample, TrainerError)]
    return errors[0] if errors else default_collate(samples)
