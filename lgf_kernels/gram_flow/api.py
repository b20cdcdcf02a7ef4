"""Local Gram Flow and its loss, as functions and modules, with the specification and the checks of all arguments."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core import checks
from ..core.registry import call_of, checked_backend, resolve
from . import operators
from .options import checked_options, checked_window
from .window import pairs_shape, reversed_logits, window_mask


def local_gram_flow(
    features: Tensor,
    *,
    window: int = 7,
    similarity: str = "cosine",
    boundary: str = "exclude",
    direction: str = "forward",
    backend: str | None = None,
) -> Tensor:
    r"""Similarity of every token to the tokens around it in the next frame: the logits of Local Gram Flow.

    For the offsets `d = (dy, dx)` of a `K x K` window, in row-major order::

        z[b, t, y, x, d] = < f[b, t, y, x], f[b, t+1, y+dy, x+dx] >

    where `f` are the features, divided by `max(||f||, 1e-6)` for `similarity="cosine"`. Positions outside the frame
    are 0; `local_window_mask` says which they are. Differentiable, once.

    Args:
        features: (B, T, H, W, C) float32, bfloat16, float16 or float64: batch, frames (at least 2), rows, columns,
            channels. Used as it is if the last dimension is contiguous, whatever the other strides; copied otherwise.
        window: K, odd, 1 to 15. The paper uses 7.
        similarity: "cosine" (default) or "dot", the paper's formula to the letter. With a temperature of 0.1 the raw
            product of a few hundred channels saturates the softmax, hence the default.
        boundary: "exclude" or "zero". Both give the same logits; it is here so that one set of options serves this
            function and `lgf_kl_loss_from_logits`.
        direction: "forward" (default) or "backward". Backward, entry t has its queries in frame t+1 and its keys in
            frame t.
        backend: None (default) for the first that can, or a name from `lgf_kernels.backends()`.

    Returns:
        (B, T-1, H, W, K*K) in float32 (float64 for float64 features).

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, and what to do.

    Source: SAM2VideoX (Structure From Tracking), section 4.2.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> teacher = torch.randn(1, 13, 30, 45, 64)
        >>> cache = lgf.local_gram_flow(teacher).half()     # to disk, once, instead of the features
        >>> cache.shape
        torch.Size([1, 12, 30, 45, 49])
    """
    here = "local_gram_flow"
    checks.features(here, "features", features)
    options = checked_options(
        here,
        directions=("forward", "backward"),
        direction_hint='For both directions call twice, once with "forward" and once with "backward".',
        window=window,
        similarity=similarity,
        boundary=boundary,
        direction=direction,
    )
    call = call_of("local_gram_flow", features, **options.facts())
    return operators.local_gram_flow(features, options, resolve(call, backend, here))


def local_window_mask(height: int, width: int, window: int = 7, *, device: torch.device | str | None = None) -> Tensor:
    """Which offsets of each token's window lie inside the frame.

    Args:
        height, width: of the frame, in tokens.
        window: K, odd, 1 to 15.
        device: of the result; torch's default device if None.

    Returns:
        bool (H, W, K*K), True = inside, in the order of the last dimension of `local_gram_flow`.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Example:
        >>> import lgf_kernels as lgf
        >>> lgf.local_window_mask(4, 5, window=3)[0, 0].view(3, 3)     # the top left token
        tensor([[False, False, False],
                [False,  True,  True],
                [False,  True,  True]])
    """
    here = "local_window_mask"
    checks.size(here, "height", height)
    checks.size(here, "width", width)
    return window_mask(height, width, checked_window(here, window), checks.device(here, device))


def lgf_kl_loss(
    student: Tensor,
    teachers: Tensor | Sequence[Tensor],
    *,
    teacher_weights: Sequence[float] | None = None,
    window: int = 7,
    temperature: float = 0.1,
    similarity: str = "cosine",
    boundary: str = "exclude",
    divergence: str = "kl",
    direction: str = "forward",
    token_weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Local Gram Flow loss: how tokens move from frame to frame, student against teacher.

    With the logits `z` of `local_gram_flow`, over the window of each token `i = (b, t, y, x)`::

        zT[i, d] = sum_m w_m z_m[i, d]                                   teachers are fused as logits, never as features
        P = softmax(zT / temperature),  Q = softmax(zS / temperature)
        KL_i = sum_d P[i, d] (log P[i, d] - log Q[i, d])
        loss = sum_i a_i KL_i / sum_i a_i                                a = token_weight, 1 if None

    The K*K-fold unfolded features are never stored. The gradient flows to the student only, and once. NaN or inf in
    the features gives NaN.

    Args:
        student: (B, T, H, W, C) float32, bfloat16, float16 or float64; T at least 2. All arithmetic accumulates in
            float32 (float64 for a float64 student), under autocast too. Used as it is if the last dimension is
            contiguous, whatever the other strides; copied otherwise.
        teachers: one tensor or a sequence of tensors, (B, T, H, W, any number of channels), of any of those types,
            without gradient. In the paper: forward and backward SAM2 memory features.
        teacher_weights: w, floats >= 0, one for each teacher. None (default): equal, with sum 1.
        window: K, odd, 1 to 15. The paper uses 7.
        temperature: of both softmaxes, > 0. The paper uses 0.1.
        similarity: "cosine" (default) normalises every feature vector first, `f / max(||f||, 1e-6)`; "dot" is the
            paper's formula to the letter, which saturates the softmax at a few hundred channels.
        boundary: "exclude" (default): the softmax runs over the positions inside the frame. "zero": those outside
            stay in it with logit 0, as with zero-padded unfolding.
        divergence: "kl" (default), or "l2": `mean_d (zS - zT)^2` over the window, no softmax (the paper's ablation
            "w/o KL"); over the positions inside for "exclude", over all K*K for "zero".
        direction: "forward" (default): queries in frame t, keys in frame t+1. "backward": the other way round, entry t
            having its queries in frame t+1. "both": the mean of the two.
        token_weight: a, (B, T-1, H, W) of any real type, bool masks included, >= 0, without gradient. Indexed by the
            query's position in pair t, in either direction. With "mean" only their ratios count: they may be of any size that
            their own type holds. All zeros give 0/0 = NaN with "mean", as torch's own
            weighted means do: use "sum" and divide by `token_weight.sum().clamp(min=1)` where that can happen. Negative
            values raise on the CPU and are not checked on other devices, where reading them would make the host wait.
            Tokens of weight 0 are skipped, forward and backward: image rows of them by "native" on the CPU, tiles of them
            on GPUs ("triton", "native"). NaN that only such tokens look at may be passed over.
        reduction: "mean" (default), "sum" (`sum_i a_i KL_i`) or "none" (`a_i KL_i`).
        backend: None (default) for the first that can, or a name from `lgf_kernels.backends()`.

    Returns:
        A scalar, or (B, T-1, H, W) for "none", in float32 (float64 for a float64 student).

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, and what to do.

    Source: SAM2VideoX (Structure From Tracking), sections 4.2 to 4.4, Appendix D and Table 2.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> student = torch.randn(1, 5, 8, 12, 32, requires_grad=True)
        >>> forward, backward = torch.randn(2, 1, 5, 8, 12, 64)
        >>> loss = lgf.lgf_kl_loss(student, [forward, backward])
        >>> loss.backward()
        >>> student.grad.shape
        torch.Size([1, 5, 8, 12, 32])
    """
    here = "lgf_kl_loss"
    options = checked_options(
        here, window=window, temperature=temperature, similarity=similarity, boundary=boundary, divergence=divergence,
        direction=direction, reduction=reduction,
    )  # fmt: skip
    checks.features(here, "student", student)
    teachers, names = checks.teacher_list(here, "teachers", teachers)
    for name, teacher in zip(names, teachers, strict=True):
        checks.teacher(
            here, name, teacher, student, (*student.shape[:4], None), "(B, T, H, W, C)",
            "Only the number of channels may differ from the student's: resample the teacher to the student's grid first.",
        )  # fmt: skip
    return _lgf_kl(here, student, teachers, teacher_weights, token_weight, options, False, backend)


def lgf_kl_loss_from_logits(
    student: Tensor,
    teacher_logits: Tensor | Sequence[Tensor],
    *,
    teacher_weights: Sequence[float] | None = None,
    window: int = 7,
    temperature: float = 0.1,
    similarity: str = "cosine",
    boundary: str = "exclude",
    divergence: str = "kl",
    direction: str = "forward",
    token_weight: Tensor | None = None,
    reduction: str = "mean",
    logits_direction: str | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""`lgf_kl_loss` with the teachers' logits cached: what a training run on precomputed teachers should call.

    The formula is that of `lgf_kl_loss`, `zT = sum_m w_m teacher_logits[m]`. The teachers' Gram products, two thirds of
    the forward with two teachers, fall away, and a cache of the logits in float16 is a fraction of the features' size.

    Args:
        student: as in `lgf_kl_loss`.
        teacher_logits: what `local_gram_flow(teacher, ...)` returned for the same window, similarity and boundary:
            (B, T-1, H, W, K*K) of any floating type, usually float16; one tensor or a sequence.
        direction: of the loss, as in `lgf_kl_loss`: "forward" (default), "backward", or "both", the mean of the two.
        logits_direction: of the cache, "forward" or "backward". None (default): that of the loss, "forward" for "both". Either
            holds the products of the other, in another order: a cache of one direction serves all losses.
        teacher_weights, window, temperature, similarity, boundary, divergence, token_weight, reduction, backend: as in
            `lgf_kl_loss`. `similarity` is that of the student; the cache has its own already in it.

    Returns:
        A scalar, or (B, T-1, H, W) for "none", in float32 (float64 for a float64 student).

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, and what to do.

    Source: SAM2VideoX (Structure From Tracking), sections 4.3 and 4.4.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> teacher = torch.randn(1, 5, 8, 12, 64)
        >>> cache = lgf.local_gram_flow(teacher).half()
        >>> student = torch.randn(1, 5, 8, 12, 32, requires_grad=True)
        >>> lgf.lgf_kl_loss_from_logits(student, cache).backward()
    """
    here = "lgf_kl_loss_from_logits"
    options = checked_options(
        here, window=window, temperature=temperature, similarity=similarity, boundary=boundary, divergence=divergence,
        direction=direction, reduction=reduction,
    )  # fmt: skip
    checks.features(here, "student", student)
    teachers, names = checks.teacher_list(here, "teacher_logits", teacher_logits)
    for name, logits in zip(names, teachers, strict=True):
        checks.teacher(
            here, name, logits, student, (*pairs_shape(student), options.window**2), "(B, T-1, H, W, window*window)",
            "Make it with local_gram_flow(teacher, window=...) on the student's grid and with the same window.",
        )  # fmt: skip
    cached = _logits_direction(here, logits_direction, options.direction)
    losses = [
        _lgf_kl(
            here, student, teachers if direction == cached else [reversed_logits(logits) for logits in teachers],
            teacher_weights, token_weight, options._replace(direction=direction), True, backend,
        )
        for direction in options.directions
    ]  # fmt: skip
    return losses[0] if len(losses) == 1 else (losses[0] + losses[1]) / 2


def _logits_direction(function: str, given: str | None, direction: str) -> str:
    """Return the direction of a cache: that given, else that of the loss, "forward" for "both"."""
    if given is None:
        return "backward" if direction == "backward" else "forward"
    return checks.choice(function, "logits_direction", given, ("forward", "backward"))


def _lgf_kl(here, student, teachers, teacher_weights, token_weight, options, from_logits: bool, backend) -> Tensor:
    weights = checks.teacher_weights(here, teacher_weights, len(teachers))
    if token_weight is not None:
        shape = pairs_shape(student)
        checks.weight_tensor(here, "token_weight", token_weight, student, shape, "(B, T-1, H, W)")
    facts = {"teachers": len(teachers), "from_logits": from_logits, "token_weight": token_weight is not None}
    call = call_of("lgf_kl", student, **options.facts(), **facts)
    name = resolve(call, backend, here)
    return operators.lgf_kl(student, teachers, weights, token_weight, options, from_logits, name)


class _Loss(nn.Module):
    """A loss with its options fixed and checked."""

    def __init__(self, teacher_weights: Sequence[float] | None, backend: str | None, **options):
        super().__init__()
        here = type(self).__name__
        checked_options(here, **options)
        self.options = options
        self.teacher_weights = checks.teacher_weights(here, teacher_weights, count=None)
        self.backend = checked_backend(backend, here)

    def fixed(self) -> dict[str, object]:
        """Return all arguments of the function that are fixed."""
        return self.options | {"teacher_weights": self.teacher_weights, "backend": self.backend}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.fixed().items())


class LocalGramFlowKLLoss(_Loss):
    """`lgf_kl_loss` with its options fixed: `loss(student, teachers, token_weight=None)`.

    Args:
        window, temperature, similarity, boundary, divergence, direction, teacher_weights, reduction, backend: as in
            `lgf_kernels.lgf_kl_loss`, and checked here rather than in the first step of a training run.

    Shapes: student (B, T, H, W, C); teachers one or several (B, T, H, W, any); token_weight (B, T-1, H, W).

    Raises:
        TypeError, ValueError: an option is wrong.

    Source: SAM2VideoX (Structure From Tracking), sections 4.2 to 4.4.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> criterion = lgf.LocalGramFlowKLLoss(teacher_weights=(0.5, 0.5))
        >>> student = torch.randn(1, 5, 8, 12, 32, requires_grad=True)
        >>> forward, backward = torch.randn(2, 1, 5, 8, 12, 64)
        >>> criterion(student, [forward, backward]).backward()
    """

    def __init__(
        self,
        window: int = 7,
        temperature: float = 0.1,
        similarity: str = "cosine",
        boundary: str = "exclude",
        divergence: str = "kl",
        direction: str = "forward",
        teacher_weights: Sequence[float] | None = None,
        reduction: str = "mean",
        backend: str | None = None,
    ):
        super().__init__(
            teacher_weights, backend, window=window, temperature=temperature, similarity=similarity, boundary=boundary,
            divergence=divergence, direction=direction, reduction=reduction,
        )  # fmt: skip

    def forward(
        self, student: Tensor, teachers: Tensor | Sequence[Tensor], token_weight: Tensor | None = None
    ) -> Tensor:
        return lgf_kl_loss(student, teachers, token_weight=token_weight, **self.fixed())


class LocalGramFlowKLLossFromLogits(_Loss):
    """`lgf_kl_loss_from_logits` with its options fixed: `loss(student, teacher_logits, token_weight=None)`.

    Args:
        window, temperature, similarity, boundary, divergence, direction, logits_direction, teacher_weights, reduction,
            backend: as in `lgf_kernels.lgf_kl_loss_from_logits`, and checked here rather than in the first step of a
            training run.

    Shapes: student (B, T, H, W, C); teacher_logits one or several (B, T-1, H, W, K*K); token_weight (B, T-1, H, W).

    Raises:
        TypeError, ValueError: an option is wrong.

    Source: SAM2VideoX (Structure From Tracking), sections 4.3 and 4.4.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> criterion = lgf.LocalGramFlowKLLossFromLogits(direction="both")
        >>> cache = lgf.local_gram_flow(torch.randn(1, 5, 8, 12, 64)).half()      # one direction serves both
        >>> student = torch.randn(1, 5, 8, 12, 32, requires_grad=True)
        >>> criterion(student, cache).backward()
    """

    def __init__(
        self,
        window: int = 7,
        temperature: float = 0.1,
        similarity: str = "cosine",
        boundary: str = "exclude",
        divergence: str = "kl",
        direction: str = "forward",
        logits_direction: str | None = None,
        teacher_weights: Sequence[float] | None = None,
        reduction: str = "mean",
        backend: str | None = None,
    ):
        super().__init__(
            teacher_weights, backend, window=window, temperature=temperature, similarity=similarity, boundary=boundary,
            divergence=divergence, direction=direction, reduction=reduction,
        )  # fmt: skip
        self.logits_direction = _logits_direction("LocalGramFlowKLLossFromLogits", logits_direction, direction)

    def fixed(self) -> dict[str, object]:
        return super().fixed() | {"logits_direction": self.logits_direction}

    def forward(
        self, student: Tensor, teacher_logits: Tensor | Sequence[Tensor], token_weight: Tensor | None = None
    ) -> Tensor:
        return lgf_kl_loss_from_logits(student, teacher_logits, token_weight=token_weight, **self.fixed())
