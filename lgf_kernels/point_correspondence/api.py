"""Point correspondence, as functions and a module: the docstrings are the specification, and every argument is checked."""

from torch import Tensor, nn

from ..core import checks
from ..core.registry import call_of, checked_backend, resolve
from . import operators
from .options import checked_options, constant, small_frames


def point_correspondence(
    features: Tensor,
    queries: Tensor,
    *,
    temperature: float = 0.05,
    window: int | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Where each query point is found in every frame: the soft-argmax of its similarity to all tokens of the frame.

    With the features `E` between tokens sampled bilinearly, then normalised, and `r_j` the row and column of token j::

        f_q = sum_k beta_k E[t_q, corner_k],   f = f_q / max(||f_q||, 1e-6)
        z_j = < f, E[t, j] / max(||E[t, j]||, 1e-6) > / temperature
        P = softmax_j z                                                      over the H*W tokens of frame t
        place[t] = sum_j P_j r_j

    The cost maps `z`, H*W numbers for each query and frame, are never stored. Differentiable with respect to the
    features, once.

    Args:
        features: (B, T, H, W, C) float32, bfloat16, float16 or float64: batch, frames (at least 2), rows, columns,
            channels. All arithmetic accumulates in float32 (float64 for float64 features), under autocast too. Used as
            they are if the last dimension is contiguous, whatever the other strides; copied otherwise.
        queries: (B, N, 3) of any real type, without gradient: t, y, x. t is a whole number in [0, T-1]; y in [0, H-1] and
            x in [0, W-1] are in tokens, whose centres are whole numbers: `(pixel + 0.5) / 16 - 0.5` for tokens of 16 pixels.
            N may be 0. Others raise on the CPU and are not looked for on other devices, where looking would make the host
            wait: there their places are NaN.
        temperature: of the softmax, > 0. 0.05 (default) is TAPIR's factor of 20 on the similarity.
        window: None (default): the softmax runs over the whole frame, every token is taught and nothing jumps. R >= 1: only
            over the tokens at most R rows and columns from the largest `z`, which is a constant for the gradient; TAPIR and
            DINO-Tracker use 5. Of equal ones it is the first, row by row: with one channel, the first token whose sign is the
            query's. Of those that only rounding tells apart, such as equal tokens of several channels, it may be any. A frame
            then has at most 2^24 tokens.
        backend: None (default) for the first that can, or a name from `lgf_kernels.backends()`.

    Returns:
        (B, N, T, 2), y and x in tokens, in float32 (float64 for float64 features). In the query's own frame too.

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, and what to do.

    Source: Track4Gen (cosine nearest neighbours); softmax and window as in TAPIR and DINO-Tracker. That the features are
    sampled first and normalised then is our reading.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> features = torch.randn(1, 5, 8, 12, 32)
        >>> queries = torch.tensor([[[0, 2.0, 3.0], [4, 6.5, 10.25]]])         # two points: t, y, x
        >>> lgf.point_correspondence(features, queries).shape
        torch.Size([1, 2, 5, 2])
    """
    here = "point_correspondence"
    options = checked_options(here, temperature=temperature, window=window)
    _checked_points(here, features, queries, options.window)
    name = resolve(call_of("point_correspondence", features, window=options.window), backend, here)
    return operators.point_correspondence(features, queries, options, name)


def point_correspondence_loss(
    features: Tensor,
    queries: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    *,
    temperature: float = 0.05,
    distance: str = "huber",
    delta: float = 1.0,
    window: int | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Point correspondence loss: how far from its track each point is found, by the features of the video itself.

    With the places of `point_correspondence`, for each query n of a video and each frame t but the query's own::

        e[n, t] = || place[n, t] - target[n, t] ||                            in tokens
        l = e^2 / 2  if e <= delta  else  delta (e - delta / 2)               "huber";   l = e for "l1"
        loss = sum weight l / sum weight

    The cost maps, H*W numbers for each query and frame, are never stored: 12 bytes a query and frame are kept for the
    backward, 16 with a window. The gradient flows to the features only, and once. NaN or inf in the features of a frame in
    which any weight counts gives NaN; in those of a frame without, the loss is not touched, but the gradient may be NaN.

    Args:
        features, queries, temperature, window: as in `point_correspondence`. The features are usually a projector's output.
        targets: (B, N, T, 2) of any real type, without gradient: y and x in the same units, the track of each query. They
            may lie outside the frame, and be NaN where the weight is 0.
        weight: w, (B, N, T) of any real type, bool masks included, >= 0, without gradient; usually whether the track is
            visible. None (default): 1. In the query's own frame it counts as 0: matching a frame with itself teaches
            nothing. With "mean" only their ratios count, whatever their size. Where all of it is 0, or there are no queries,
            "mean" is 0/0 = NaN, as torch's own means are: use "sum" and divide by `weight.sum().clamp(min=1)` where that can
            happen. Negative values raise on the CPU and are not looked for on other devices.
        distance: "huber" (default) or "l1", the Euclidean distance itself.
        delta: where "huber" goes over from a parabola to a line, in tokens, > 0. 1 (default) of 45 columns is about what
            TAPIR's 4 of 256 pixels are.
        reduction: "mean" (default), "sum" (`sum weight l`) or "none" (`weight l`).
        backend: None (default) for the first that can, or a name from `lgf_kernels.backends()`.

    Returns:
        A scalar, or (B, N, T) for "none", in float32 (float64 for float64 features).

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, and what to do.

    Source: Track4Gen, its correspondence loss, of which temperature and distance are not published: these are TAPIR's.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> features = torch.randn(1, 5, 8, 12, 32, requires_grad=True)
        >>> queries = torch.tensor([[[0, 2.0, 3.0], [4, 6.5, 10.25]]])
        >>> targets = queries[:, :, None, 1:] + torch.zeros(1, 2, 5, 2)       # two points that do not move
        >>> visible = torch.ones(1, 2, 5, dtype=torch.bool)
        >>> lgf.point_correspondence_loss(features, queries, targets, visible).backward()
        >>> features.grad.shape
        torch.Size([1, 5, 8, 12, 32])
    """
    here = "point_correspondence_loss"
    options = checked_options(
        here, temperature=temperature, window=window, distance=distance, delta=delta, reduction=reduction
    )
    _checked_points(here, features, queries, options.window)
    shape = (*queries.shape[:2], features.shape[1])
    constant(
        here, "targets", targets, features, (*shape, 2), "(B, N, T, 2)",
        "Give the y and x of every query in every frame; those of weight 0 may be NaN.",
    )  # fmt: skip
    if weight is not None:
        constant(
            here, "weight", weight, features, shape, "(B, N, T)",
            "Give a number for every query in every frame: weight.expand(...) brings it to that shape.",
        )  # fmt: skip
    name = resolve(call_of("point_correspondence", features, window=options.window), backend, here)
    return operators.point_correspondence_loss(features, queries, targets, weight, options, name)


def _checked_points(function: str, features: Tensor, queries: Tensor, window: int | None) -> None:
    checks.features(function, "features", features)
    constant(
        function, "queries", queries, features, (features.shape[0], None, 3), "(B, N, 3)",
        "Stack frame, row and column: torch.stack([t, y, x], dim=-1).",
    )  # fmt: skip
    small_frames(function, features, window)


class PointCorrespondenceLoss(nn.Module):
    """`point_correspondence_loss` with its options fixed: `loss(features, queries, targets, weight=None)`.

    Args:
        temperature, distance, delta, window, reduction, backend: as in `lgf_kernels.point_correspondence_loss`, and checked
            here rather than in the first step of a training run.

    Shapes: features (B, T, H, W, C); queries (B, N, 3); targets (B, N, T, 2); weight (B, N, T).

    Raises:
        TypeError, ValueError: an option is wrong.

    Source: Track4Gen.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> criterion = lgf.PointCorrespondenceLoss(window=5)
        >>> features = torch.randn(1, 5, 8, 12, 32, requires_grad=True)
        >>> criterion(features, torch.tensor([[[0, 2.0, 3.0]]]), torch.full((1, 1, 5, 2), 3.0)).backward()
    """

    def __init__(
        self,
        temperature: float = 0.05,
        distance: str = "huber",
        delta: float = 1.0,
        window: int | None = None,
        reduction: str = "mean",
        backend: str | None = None,
    ):
        super().__init__()
        here = "PointCorrespondenceLoss"
        self.options = dict(temperature=temperature, distance=distance, delta=delta, window=window, reduction=reduction)
        checked_options(here, **self.options)
        self.backend = checked_backend(backend, here)

    def forward(self, features: Tensor, queries: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        return point_correspondence_loss(features, queries, targets, weight, backend=self.backend, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in (self.options | {"backend": self.backend}).items())
