"""Local Gram Flow: its cases, what one would run instead in plain PyTorch, and its sweeps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import lgf_kernels as lgf

from .base import Case, Loss, Provider, Sweep, Tensors, Tuned, compiled, eager

LATENT, TEMPERATURE = (1, 13, 30, 45, 256), 0.1


@dataclass(frozen=True)
class GramFlow(Case):
    """Features (B, T, H, W, C) that are compared within windows of the next frame."""

    shapes, least, small = "B,T,H,W,C with T at least 2", (1, 2, 1, 1, 1), (1, 2, 8, 8, 16)

    window: int = 7

    def __post_init__(self):
        lgf.LocalGramFlowKLLoss(self.window)  # which checks it

    def options(self) -> dict[str, object]:
        return {"window": self.window}

    @property
    def map_bytes(self) -> float:
        """Bytes of a feature map in float32."""
        return 4.0 * torch.Size(self.shape).numel()

    def logits(self, dtype: torch.dtype) -> Tensor:
        """Return the logits of a feature map without their memory."""
        B, T, H, W, _ = self.shape
        return self.empty(B, T - 1, H, W, self.window**2, dtype=dtype)

    def flop(self) -> tuple[int, int]:
        return self._products(self.shape[-1]), 2 * self._products(self.shape[-1])  # by queries, and by keys

    def _products(self, channels: int) -> int:
        """Return the FLOP of a product for every position inside a window."""
        B, T, H, W, _ = self.shape
        return 2 * B * (T - 1) * int(lgf.local_window_mask(H, W, self.window).sum()) * channels


@dataclass(frozen=True)
class LgfKl(GramFlow):
    """The loss of a student against teachers: two with the channels of the student, unless others are given."""

    operator = "lgf_kl"
    differentiable = ("student",)

    teacher_channels: tuple[int, ...] | None = None
    #: The teachers come as float16 logits, as a training run on precomputed teachers has them.
    cached: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each teacher's features."""
        return 2 * self.shape[-1:] if self.teacher_channels is None else self.teacher_channels

    def layout(self) -> Tensors:
        features = [self.empty(*self.shape[:-1], channels) for channels in self.channels]
        return {
            "student": self.empty(*self.shape),
            "teachers": [self.logits(torch.float16) for _ in features] if self.cached else features,
        }

    def tensors(self) -> Tensors:
        if not self.cached:
            return super().tensors()
        tensors = replace(self, cached=False).tensors()
        logits = [lgf.local_gram_flow(teacher, window=self.window).half() for teacher in tensors["teachers"]]
        return tensors | {"teachers": logits}

    def call(self, *, student: Tensor, teachers: list[Tensor], backend: str | None = None, **options) -> Tensor:
        function = lgf.lgf_kl_loss_from_logits if self.cached else lgf.lgf_kl_loss
        return function(student, teachers, window=self.window, backend=backend, **options)

    def options(self) -> dict[str, object]:
        return super().options() | ({"cached": True} if self.cached else {})

    def flop(self) -> tuple[int, int]:
        forward, backward = super().flop()
        return forward + (0 if self.cached else self._products(sum(self.channels))), backward

    def oracle(self, tensors: Tensors) -> Iterator[Tensor]:
        """Yield the part of each pair of successive frames, of which a cache has one entry."""
        B, T, H, W, _ = self.shape
        student, teachers = tensors["student"], tensors["teachers"]
        for t in range(T - 1):
            pair = slice(t, t + 2)
            entry = slice(t, t + 1) if self.cached else pair
            total = self.call(
                student=student[:, pair], teachers=[teacher[:, entry] for teacher in teachers],
                backend="reference", reduction="sum",
            )  # fmt: skip
            yield total / (B * (T - 1) * H * W)


@dataclass(frozen=True)
class LocalGramFlow(GramFlow):
    """The logits of one feature map."""

    operator = "local_gram_flow"
    differentiable = ("features",)

    def layout(self) -> Tensors:
        return {"features": self.empty(*self.shape)}

    def output(self) -> Tensor:
        return self.logits(torch.float64 if self.dtype == "float64" else torch.float32)

    def call(self, *, features: Tensor, backend: str | None = None) -> Tensor:
        return lgf.local_gram_flow(features, window=self.window, backend=backend)


OPERATORS = (LgfKl, LocalGramFlow)
CASES = {
    "cogvideox-latent": LgfKl(LATENT, about="LGF-KL, CogVideoX's latent grid, forward and backward SAM2 teacher"),
    "cogvideox-latent-cached": LgfKl(LATENT, cached=True, about="LGF-KL, the same from the teachers' cached logits"),
    "cogvideox-latent-logits": LocalGramFlow(LATENT, about="the logits of one feature map and their gradient"),
    "cogvideox-latent-batch4": LgfKl((4, *LATENT[1:]), about="LGF-KL, CogVideoX's latent grid, 4 videos", large=True),
    "sam2": LgfKl((1, 49, 64, 64, 256), about="LGF-KL, every frame on the teacher's own grid", large=True),
    "sam2-cached": LgfKl((1, 49, 64, 64, 256), cached=True, about="LGF-KL, the same from cached logits", large=True),
    "latent-to-frame": LgfKl((1, 49, 30, 45, 256), about="LGF-KL, latents interpolated to every frame", large=True),
    "cogvideox1.5": LgfKl((1, 21, 48, 85, 256), about="LGF-KL, CogVideoX 1.5's grid", large=True),
    **{
        f"window-{K}": LgfKl(LATENT, window=K, about=f"LGF-KL, CogVideoX's latent grid, {K} x {K} window", large=K > 7)
        for K in (3, 5, 9, 11, 13, 15)
    },
}

#: More channels than a block of the backward kernel.
_WIDE = LgfKl((*LATENT[:-1], 512), teacher_channels=(256, 256))
TUNED = (
    Tuned("FORWARD", CASES["cogvideox-latent"], "forward"),
    Tuned("BACKWARD", CASES["cogvideox-latent"], "backward"),
    Tuned("FORWARD_ONE_GRAM", CASES["cogvideox-latent-cached"], "forward"),
    Tuned("BACKWARD_TWO_PASSES", _WIDE, "backward"),
)


def sweeps(gpu: bool) -> dict[str, Sweep]:
    """Return the sweeps over each size of LGF-KL."""
    T, H, W, C = (13, 30, 45, 256) if gpu else (5, 24, 32, 64)
    return {
        "pairs": Sweep("T - 1", "LGF-KL, pairs of frames", {n: LgfKl((1, n + 1, H, W, C)) for n in (2, 4, 8, 16, 32)}),
        "tokens": Sweep(
            "H * W", "LGF-KL, tokens of a frame", {H * W * s * s: LgfKl((1, T, H * s, W * s, C)) for s in (1, 2, 3, 4)}
        ),
        "channels": Sweep(
            "C", "LGF-KL, channels", {channels: LgfKl((1, T, H, W, channels)) for channels in (64, 128, 256, 512, 1024)}
        ),
        "window": Sweep(
            "K", "LGF-KL, side of the window", {K: LgfKl((1, T, H, W, C), window=K) for K in range(3, 16, 2)}
        ),
    }  # fmt: skip


def unfolded_logits(features: Tensor, window: int) -> Tensor:
    """Unfold all windows: K*K copies of the feature map."""
    B, T, H, W, C = features.shape
    keys = features[:, 1:].flatten(0, 1).permute(0, 3, 1, 2)
    keys = F.unfold(keys, window, padding=window // 2).view(B, T - 1, C, window * window, H, W)
    return torch.einsum("bthwc,btcdhw->bthwd", features[:, :-1], keys)


def blocked_logits(features: Tensor, window: int, tile: int = 8) -> Tensor:
    """Multiply tiles of queries by their halos of keys in one batched product, from which each query gathers its window."""
    B, T, H, W = features.shape[:4]
    r, down, right = window // 2, -H % tile, -W % tile
    halo = tile + 2 * r
    queries = F.pad(features[:, :-1], (0, 0, 0, right, 0, down)).flatten(0, 1)
    keys = F.pad(features[:, 1:], (0, 0, r, r + right, r, r + down)).flatten(0, 1)
    queries = queries.unfold(1, tile, tile).unfold(2, tile, tile).flatten(-2)
    keys = keys.unfold(1, halo, tile).unfold(2, halo, tile).flatten(-2)
    gram = queries.mT @ keys
    inner, offset = (torch.arange(length, device=features.device) for length in (tile, window))
    row, column = (inner[:, None, None, None] + offset[:, None]), (inner[:, None, None] + offset)
    index = (row * halo + column).reshape(tile * tile, window * window)
    logits = gram.gather(-1, index.expand(*gram.shape[:-2], -1, -1)).unflatten(3, (tile, tile))
    logits = logits.transpose(2, 3).reshape(B, T - 1, H + down, W + right, window * window)
    return logits[:, :, :H, :W]


def unit(features: Tensor) -> Tensor:
    """Normalise in float32, and return the features' own type: what a user hands to a matrix product."""
    return F.normalize(features.float(), dim=-1, eps=1e-6).to(features.dtype)


def kl_divergence(log_p: Tensor, log_q: Tensor, outside: Tensor) -> Tensor:
    return torch.where(outside, 0.0, log_p.exp() * (log_p - log_q)).sum(-1).mean()


def from_logits(logits: Callable[[Tensor, int], Tensor], case: GramFlow, kl: Callable = kl_divergence) -> Loss:
    """Return the operator of a case by given logits of normalised features, and plain PyTorch for the rest."""

    def outside(features: Tensor) -> Tensor:
        return ~lgf.local_window_mask(*features.shape[2:4], case.window, device=features.device)

    def gram(features: Tensor) -> Tensor:
        return logits(unit(features), case.window).float()

    def local_gram_flow(features: Tensor) -> Tensor:
        return gram(features).masked_fill(outside(features), 0.0)

    def lgf_kl(student: Tensor, teachers: list[Tensor]) -> Tensor:
        out = outside(student)
        zT = sum(t.float() if case.cached else gram(t) for t in teachers) / len(teachers)
        return kl(*((z / TEMPERATURE).masked_fill(out, -torch.inf).log_softmax(-1) for z in (zT, gram(student))), out)

    return lgf_kl if isinstance(case, LgfKl) else local_gram_flow


#: The numbers of maps are measured ones (the table's peak memory), rounded up.
BASELINES = {
    "eager-unfold": Provider(
        "torch.nn.functional.unfold of every feature map", partial(from_logits, unfolded_logits),
        lambda case: 2.5 * case.window**2 * case.map_bytes,
    ),
    "eager": Provider(
        "plain PyTorch: a loop over the offsets of the window (the library's oracle)", eager,
        lambda case: (case.window**2 + 7) * case.map_bytes,
    ),
    "compile": Provider("torch.compile of eager", compiled, lambda case: 8 * case.map_bytes, compiles=True),
    "bmm": Provider(
        "batched products of 8 x 8 queries with their halos, then a gather", partial(from_logits, blocked_logits),
        lambda case: 12 * case.map_bytes,
    ),
}  # fmt: skip
