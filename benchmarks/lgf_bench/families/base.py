"""What an operator must at least do, counted: the floor under every time.

    floor = max(FLOP / GEMM ceiling, bytes / copy ceiling)

FLOP are those of the products of features with features and of coefficients with features, two for a multiply-add; softmax,
norms and the like are a few per cent on top and are left out. Bytes are the inputs read once and the outputs written once per
pass. "both" is one pass that makes loss and gradient together. No machine reaches it; it is the same for every provider.
"""

from typing import NamedTuple

import torch

import lgf_kernels as lgf

from .cases import Case

PASSES = ("forward", "backward", "both")


class Work(NamedTuple):
    flop: int
    bytes: int

    def seconds(self, flops: float, bandwidth: float) -> float:
        """The floor on a machine of so many FLOP/s and bytes/s."""
        return max(self.flop / flops, self.bytes / bandwidth)


def work(case: Case) -> dict[str, Work]:
    """The least work of each pass."""
    student = torch.Size(case.shape).numel() * getattr(torch, case.dtype).itemsize
    forward, backward = (_relations if case.operator == "token_relation" else _windows)(case)
    logits = _logits(case) * 4
    if case.operator == "local_gram_flow":
        reads, writes, upstream = student, logits, logits
    else:
        teachers = len(case.teacher_channels) * _logits(case) * 2 if case.cached else sum(
            student // case.shape[-1] * C for C in case.teacher_channels)  # fmt: skip
        reads, writes, upstream = student + teachers, 0, 0
    return {
        "forward": Work(forward, reads + writes),
        "backward": Work(backward, student + upstream + student),
        "both": Work(forward + backward, reads + writes + upstream + student),
    }


def _windows(case: Case) -> tuple[int, int]:
    """A product for every position inside a window, of every feature map; two for the gradient, of queries and of keys."""
    B, T, H, W, C = case.shape
    positions = B * (T - 1) * _inside(H, case.window) * _inside(W, case.window)
    teachers = 0 if case.cached else sum(case.teacher_channels)
    return 2 * positions * (C + teachers), 2 * 2 * positions * C


def _inside(length: int, window: int) -> int:
    """Pairs (position, offset) on a line that stay on it."""
    r = min(window // 2, length - 1)
    return length * (2 * r + 1) - r * (r + 1)


def _logits(case: Case) -> int:
    """Numbers in the logits of a feature map; none for token relations."""
    if case.operator == "token_relation":
        return 0
    B, T, H, W, _ = case.shape
    return B * (T - 1) * H * W * case.window**2


def _relations(case: Case) -> tuple[int, int]:
    """Half of both symmetric Grams, diagonal included, and coefficients by features, for pairs of frames of any weight."""
    B, frames, N, C = case.shape
    weighted = lgf.TokenRelationLoss(case.form).pair_weight(frames) != 0
    pairs = int(weighted.sum()) * N * N
    upper = (pairs + int(weighted.diagonal().sum()) * N) // 2
    return 2 * B * upper * (C + sum(case.teacher_channels)), 2 * B * pairs * C
