"""What SAM2 teaches: memory features of a tracked subject, forward and backward in time, and their Local Gram Flow.

`F_mem` of a frame is what SAM2's memory attention puts out: the frame's features after they have looked at the memories of
the frames before. The prompted frame has no memories; there SAM2's own feature of "no memory yet" stands in, the frame's
features plus a learned vector (our reading of the paper). Both tracks are prompted by a mask: the first frame's, which
SAM2 draws from a box if that is what is given, and for the backward track the last mask of the forward one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..runtime.errors import TrainerError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, as SAM2 and DINO were trained


class LostSubject(TrainerError):
    """The subject could not be followed through the window, so that there is nothing to learn from it."""


class Track(NamedTuple):
    """One subject followed through N frames, in the order of the video whichever way it was followed."""

    features: Tensor  # (N, h, w, C) memory features, h = w = size / 16
    masks: Tensor  # (N, size / 4, size / 4) logits: above 0 where the subject is


class Teacher(ABC):
    """SAM2 as extraction sees it. The weights are frozen and computed with in float32.

    An implementation encodes the frames of a video and takes one tracking step at a time; the rest is here.
    """

    model: nn.Module
    size: int  # pixels: the side of the square that every frame is resized to

    @torch.no_grad()
    def track(self, video: Tensor, prompt: Tensor) -> tuple[Track, Track]:
        """Follow a subject from the first frame to the last, and back.

        Args:
            video: (N, 3, H, W) in [-1, 1], N >= 2.
            prompt: where the subject is in the first frame: a box (4,) of x0, y0, x1, y1 in pixels of the video, or a
                mask (H, W) of bool.

        Returns:
            The forward and the backward track.

        Raises:
            LostSubject: the mask of the first or the last frame is empty.
        """
        self._watch(video)
        mask = self._mask_of_box(prompt, video.shape[-2:]) if prompt.shape == (4,) else self._square(prompt)
        if not mask.any():
            raise LostSubject("nothing is found where the subject should be in the first frame")
        forward = self._follow(mask, range(len(video)))
        last = self._enlarge(forward.masks[-1])
        if not last.any():
            raise LostSubject("the subject is lost: its mask is empty in the last frame")
        backward = self._follow(last, range(len(video) - 1, -1, -1))
        return forward, Track(backward.features.flip(0), backward.masks.flip(0))

    def _follow(self, mask: Tensor, order: range) -> Track:
        """Prompt the first frame of `order` with a mask (size, size) of bool and go on from there, in that order."""
        self._forget()
        with self._memory_features() as features:
            masks = [self._step(frame, mask if frame == order[0] else None, order.step < 0) for frame in order]
        if len(features) != len(order) - 1:
            raise RuntimeError(
                f"SAM2's memory attention ran {len(features)} times in {len(order)} frames, and once in every frame but "
                f"the prompted one was expected: lgf_trainer does not know this version of {type(self.model).__module__}"
            )
        tokens = torch.stack([self._without_memory(order[0]), *features])
        side = round(tokens.shape[1] ** 0.5)
        return Track(tokens.unflatten(1, (side, side)), torch.stack(masks))

    @contextmanager
    def _memory_features(self) -> Iterator[list[Tensor]]:
        """Collect what the memory attention puts out, (tokens, channels), each time it runs."""
        outputs: list[Tensor] = []
        # One package puts out (tokens, 1, C), the other (1, tokens, C) with more ones: the same numbers in the same order.
        handle = self.model.memory_attention.register_forward_hook(
            lambda _module, _inputs, output: outputs.append(output.reshape(-1, output.shape[-1]))
        )
        try:
            yield outputs
        finally:
            handle.remove()

    def _mask_of_box(self, box: Tensor, size: tuple[int, int]) -> Tensor:
        """The mask (size, size) of bool that SAM2 draws for a box in the first frame."""
        self._forget()
        scale = torch.tensor([self.size / size[1], self.size / size[0]], device=self.device)
        return self._enlarge(self._step(0, box.to(scale).view(2, 2) * scale, reverse=False))

    def _enlarge(self, logits: Tensor) -> Tensor:
        return interpolate(logits[None, None].float(), (self.size, self.size), mode="bilinear")[0, 0] > 0

    def _square(self, mask: Tensor) -> Tensor:
        mask = mask.to(self.device, torch.float32)[None, None]
        return interpolate(mask, (self.size, self.size), mode="bilinear", antialias=True)[0, 0] >= 0.5

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @abstractmethod
    def _watch(self, video: Tensor) -> None:
        """Encode the frames of a video, each once; those of another are dropped."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop prompts and memories, and keep the encoded frames."""

    @abstractmethod
    def _step(self, frame: int, prompt: Tensor | None, reverse: bool) -> Tensor:
        """The mask's logits in a frame: prompted by a mask (size, size) or corners (2, 2), or tracked from memories."""

    @abstractmethod
    def _without_memory(self, frame: int) -> Tensor:
        """(tokens, channels) features of a frame that has no memories to look at."""


def normalised(video: Tensor, size: tuple[int, int], device: torch.device) -> Iterator[Tensor]:
    """The frames of a video (N, 3, H, W) in [-1, 1] as teachers want them, (1, 3, *size), in float32 on a device.

    One at a time: all of them, as large as SAM2 wants them, would fill a gigabyte.
    """
    mean, deviation = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, DEVIATION))
    for frame in video:
        frame = interpolate(frame[None].to(device, torch.float32), size, mode="bilinear", antialias=True)
        yield (frame / 2 + 0.5 - mean) / deviation


def to_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Features (N, h, w, C) on another grid, (N, H, W, C): bilinear, with antialiasing where it is coarser."""
    moved = interpolate(features.permute(0, 3, 1, 2), grid, mode="bilinear", antialias=True)
    return moved.permute(0, 2, 3, 1).contiguous()
