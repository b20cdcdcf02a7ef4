"""Point correspondence: its cases, what one would run instead in plain PyTorch, and its sweep."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import lgf_kernels as lgf

from .base import Case, Loss, Provider, Sweep, Tensors, Tuned, compiled

TEMPERATURE, DELTA = 0.05, 1.0
#: Points at a time: of the oracle, and of the eager loop.
CHUNK = 256


@dataclass(frozen=True)
class PointCorrespondence(Case):
    """The loss of N points, each looked for in all frames of features (B, T, H, W, C)."""

    operator = "point_correspondence"
    differentiable = ("features",)
    shapes = "B,N,T,H,W,C with T at least 2 (videos, points, frames, rows, columns, channels)"
    least, small = (1, 1, 2, 1, 1, 1), (1, 8, 2, 8, 8, 16)

    window: int | None = None

    def __post_init__(self):
        lgf.PointCorrespondenceLoss(window=self.window)  # which checks it

    @property
    def map_bytes(self) -> float:
        """Bytes of the cost maps in float32."""
        B, N, T, H, W, _ = self.shape
        return 4.0 * B * N * T * H * W

    def layout(self) -> Tensors:
        B, N, T, H, W, C = self.shape
        return {
            "features": self.empty(B, T, H, W, C),
            "queries": self.empty(B, N, 3, dtype=torch.float32),
            "targets": self.empty(B, N, T, 2, dtype=torch.float32),
        }

    def tensors(self) -> Tensors:
        """Return features, points anywhere in the video, and tracks that wander a few tokens from them."""
        tensors, (_, _, T, H, W, _) = super().tensors(), self.shape
        sizes = torch.tensor([T, H - 1, W - 1], device=self.device)
        queries = tensors["queries"].sigmoid() * sizes
        queries[..., 0].floor_()
        return tensors | {"queries": queries, "targets": queries[:, :, None, 1:] + 2 * tensors["targets"]}

    def call(self, *, backend: str | None = None, **tensors) -> Tensor:
        options = dict(temperature=TEMPERATURE, delta=DELTA, window=self.window, backend=backend)
        return lgf.point_correspondence_loss(**tensors, **options)

    def options(self) -> dict[str, object]:
        return {} if self.window is None else {"window": self.window}

    def flop(self) -> tuple[int, int]:
        """Count one product in the forward, three in the backward, without the query's own frame."""
        B, N, T, H, W, C = self.shape
        product = 2 * B * N * (T - 1) * H * W * C
        return product, 3 * product

    def oracle(self, tensors: Tensors) -> Iterator[Tensor]:
        """Yield the share of some points at a time."""
        N = self.shape[1]
        for n in range(0, N, CHUNK):
            part = tensors | {name: tensors[name][:, n : n + CHUNK] for name in ("queries", "targets")}
            yield self.call(backend="reference", **part) * (part["queries"].shape[1] / N)


def _points(N: int, T: int, H: int, W: int, **options) -> PointCorrespondence:
    window = f", window {options['window']}" if "window" in options else ""
    about = f"{N} points in {T} frames of {H} x {W} tokens{window}"
    return PointCorrespondence((1, N, T, H, W, 256), about=about, large=N * T * H * W > 2**24, **options)


OPERATORS = (PointCorrespondence,)
CASES = {
    **{
        f"points-{N}-{T}x{H}x{W}": _points(N, T, H, W)
        for H, W in ((30, 45), (64, 64))
        for T in (13, 49)
        for N in (512, 1024, 2048, 4096)
    },
    "points-512-13x30x45-window": _points(512, 13, 30, 45, window=5),
}

_POINTS, _WINDOW = CASES["points-1024-13x30x45"], CASES["points-512-13x30x45-window"]
TUNED = (
    Tuned("SEARCH", _POINTS, "forward"),
    Tuned("SEARCH_IN_BLOCKS", PointCorrespondence((*_POINTS.shape[:-1], 512)), "forward"),
    Tuned("COEFFICIENTS", _WINDOW, "backward"),
    Tuned("WIDE_COEFFICIENTS", _POINTS, "backward"),
    Tuned("PRODUCTS", _POINTS, "backward"),
    Tuned("PRODUCTS_FOR_TOKENS", _POINTS, "backward"),
)


def sweeps(gpu: bool) -> dict[str, Sweep]:
    """Return the sweep over the points."""
    T, H, W, C = (13, 30, 45, 256) if gpu else (3, 24, 32, 64)
    cases = {N: PointCorrespondence((1, N, T, H, W, C)) for N in (128, 256, 512, 1024, 2048)}
    return {"points": Sweep("N", "point correspondence, points", cases)}


def sampled(raw: Tensor, queries: Tensor) -> Tensor:
    """Sample features (B, T, H, W, C) at the queries, bilinearly, and normalise: grid_sample would copy a frame for each."""
    t, y, x = queries.unbind(-1)
    b = torch.arange(len(raw), device=raw.device)[:, None]
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=raw.shape[2] - 1), (left + 1).clamp(max=raw.shape[3] - 1)
    down, aside = (y - top)[..., None], (x - left)[..., None]
    upper = (1 - aside) * raw[b, t.long(), top, left] + aside * raw[b, t.long(), top, right]
    lower = (1 - aside) * raw[b, t.long(), bottom, left] + aside * raw[b, t.long(), bottom, right]
    return F.normalize((1 - down) * upper + down * lower, dim=-1, eps=1e-6)


def cost_maps(f: Tensor, unit: Tensor, queries: Tensor, targets: Tensor, window: int | None) -> Tensor:
    """Return the summed loss of some points by their whole cost maps (B, N, T, H, W)."""
    H, W = unit.shape[2:4]
    z = torch.einsum("bnc,bthwc->bnthw", f, unit).flatten(3) / TEMPERATURE
    place = torch.arange(H * W, device=z.device)
    y, x = place // W, place % W
    if window is not None:
        peak = z.argmax(-1, keepdim=True)
        z = z.masked_fill(((y - y[peak]).abs() > window) | ((x - x[peak]).abs() > window), -torch.inf)
    places = z.softmax(-1) @ torch.stack([y, x], -1).to(z.dtype)
    others = queries[..., :1] != torch.arange(unit.shape[1], device=z.device)
    losses = F.huber_loss(
        (places - targets).norm(dim=-1), torch.zeros_like(places[..., 0]), reduction="none", delta=DELTA
    )
    return (losses * others).sum()


def eager(case: PointCorrespondence, at_once: int | None = None) -> Loss:
    """Return what one would write: the cost maps of all points, or of so many at a time, recomputed in backward."""

    def loss(features: Tensor, queries: Tensor, targets: Tensor) -> Tensor:
        raw = features.float()
        unit = F.normalize(raw, dim=-1, eps=1e-6)
        f = sampled(raw, queries)
        count = targets[..., 0].numel() - queries[..., 0].numel()
        if at_once is None:
            return cost_maps(f, unit, queries, targets, case.window) / count
        parts = (x.split(at_once, 1) for x in (f, queries, targets))
        total = sum(
            checkpoint(cost_maps, some, unit, q, p, case.window, use_reentrant=False)
            for some, q, p in zip(*parts, strict=True)
        )
        return total / count

    return loss


#: The numbers of maps are measured ones (the table's peak memory), rounded up.
BASELINES = {
    "eager": Provider("plain PyTorch: the cost maps of all points", eager, lambda case: 4 * case.map_bytes),
    "compile": Provider(
        "torch.compile of eager", partial(compiled, make=eager), lambda case: 4 * case.map_bytes, compiles=True
    ),
    "chunked": Provider(
        f"eager, {CHUNK} points at a time, with checkpointing", partial(eager, at_once=CHUNK),
        lambda case: 4 * case.map_bytes * min(1, CHUNK / case.shape[1]),
    ),
}  # fmt: skip
