"""Base of the teachers, and the frames that they take."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.flow import Source
from ..runtime.errors import TrainerError
from ..runtime.registry import ByName
from ..runtime.settings import from_settings, parse_yaml

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, as SAM2 and DINO were trained


class LostSubject(TrainerError):
    """Error for a window whose subject could not be tracked: there is nothing to learn from it."""


class Student(NamedTuple):
    """The frames that are compared, and the rows and columns of the student's tokens."""

    frames: range
    grid: tuple[int, int]
    source: Source | None = None  # of the window, for teachers that read files beside the video


class Teacher(ByName, ABC, kind="teachers"):
    """A frozen model whose features of a video are targets for the student's.

    A kind is a subclass in a file of its own, with a `name` for `lgf extract --teachers` and a frozen dataclass `Options`,
    which may have any fields with defaults: `--teacher-options NAME.FIELD=VALUE` sets them, and the cache's settings hold them.

    Args:
        options: of the kind.
        device: where to compute, with frozen weights in float32.
    """

    needs_subject: ClassVar[bool] = False

    @classmethod
    def sidecars(cls, options) -> tuple[str, ...]:
        """Return the endings of the files beside a video that it reads; their content is part of what a window is."""
        return ()

    @classmethod
    def check_size(cls, options, size: tuple[int, int]) -> None:
        """Refuse windows of a height and width that it cannot take, before anything is loaded; all are taken by default.

        Raises:
            TrainerError: with the size that it needs.
        """

    @abstractmethod
    def __init__(self, options, device: torch.device): ...

    @abstractmethod
    def __call__(self, video: Tensor, subject: Tensor | None, student: Student) -> dict[str, Tensor]:
        """Return what the cache gets of a window.

        Args:
            video: (N, 3, H, W) in [-1, 1].
            subject: where the subject is in the first frame, if the teacher needs one: a box (4,) of x0, y0, x1, y1 in
                pixels of the video, or a mask (H, W) of bool.
            student: the frames and the grid.

        Returns:
            Tensors by their names in the cache. Features are called `features_TEACHER_PART` and have the shape (frames, rows,
            columns, channels): of the student's frames, or of any number at equal distances from the first to the last, on
            a grid that is not finer than the student's.

        Raises:
            LostSubject: there is nothing to learn from this window.
        """


def options_of(given: dict[str, dict[str, Any]], words: Sequence[str]) -> dict[str, Any]:
    """Return teacher -> its options: those of `given`, changed by words such as `dino.model=FOLDER`, and checked.

    Raises:
        TrainerError: there is no such teacher or option, or a word is none.
    """
    for text in words:
        key, equals, value = text.partition("=")
        name, dot, field = key.partition(".")
        if not (equals and dot and name in given):
            raise TrainerError(
                f"--teacher-options {text}: expected NAME.FIELD=VALUE with one of {', '.join(given) or 'no teachers'}"
            )
        given[name] |= parse_yaml(f"{field}: {value}", text)
    return {name: from_settings(Teacher.find(name).Options, own, f"--teachers {name}") for name, own in given.items()}


def normalised(video: Tensor, size: tuple[int, int], device: torch.device) -> Iterator[Tensor]:
    """Yield the frames of a video (N, 3, H, W) in [-1, 1] as teachers want them, (1, 3, *size), float32 on a device.

    One at a time: all of them, as large as SAM2 wants them, would fill a gigabyte.
    """
    mean, deviation = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, DEVIATION))
    for frame in video:
        frame = interpolate(frame[None].to(device, torch.float32), size, mode="bilinear", antialias=True)
        yield (frame / 2 + 0.5 - mean) / deviation


def to_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Move features (N, h, w, C) to another grid, (N, H, W, C): bilinear, with antialiasing where it is coarser."""
    moved = interpolate(features.permute(0, 3, 1, 2), grid, mode="bilinear", antialias=True)
    return moved.permute(0, 2, 3, 1).contiguous()
