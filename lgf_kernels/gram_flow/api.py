"""The losses as functions. The docstrings are the specification; every argument is checked before anything runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks, ops
from .backends import resolve
from .numerics import accumulate_dtype, lgf_pairs_shape, window_mask


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
    options = checks.lgf_options(
        here,
        directions=("forward", "backward"),
        direction_hint='For both directions call twice, once with "forward" and once with "backward".',
        window=window,
        similarity=similarity,
        boundary=boundary,
        direction=direction,
    )
    return ops.local_gram_flow(features, options, resolve("local_gram_flow", features, backend, here))


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
    return window_mask(height, width, checks.window(here, window), device)


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
            query's position in pair t, in either direction. All zeros give 0/0 = NaN with "mean", as torch's own
            weighted means do: use "sum" and divide by `token_weight.sum().clamp(min=1)` where that can happen. Negative
            values raise on the CPU and are not looked for on other devices, where looking would make the host wait.
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
    options = checks.lgf_options(
        here,
        window=window,
        temperature=temperature,
        similarity=similarity,
        boundary=boundary,
        divergence=divergence,
        direction=direction,
        reduction=reduction,
    )
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
    backend: str | None = None,
) -> Tensor:
    r"""`lgf_kl_loss` with the teachers' logits cached: what a training run on precomputed teachers should call.

    The formula is that of `lgf_kl_loss`, `zT = sum_m w_m teacher_logits[m]`. The teachers' Gram products, two thirds of
    the forward with two teachers, fall away, and a cache of the logits in float16 is a fraction of the features' size.

    Args:
        student: as in `lgf_kl_loss`.
        teacher_logits: what `local_gram_flow(teacher, ...)` returned for the same window, similarity, boundary and
            direction: (B, T-1, H, W, K*K) of any floating type, usually float16; one tensor or a sequence.
        direction: "forward" (default) or "backward": that of the cache.
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
    options = checks.lgf_options(
        here,
        directions=("forward", "backward"),
        direction_hint="A cache holds one direction: add the losses of two calls for both.",
        window=window,
        temperature=temperature,
        similarity=similarity,
        boundary=boundary,
        divergence=divergence,
        direction=direction,
        reduction=reduction,
    )
    checks.features(here, "student", student)
    teachers, names = checks.teacher_list(here, "teacher_logits", teacher_logits)
    for name, logits in zip(names, teachers, strict=True):
        checks.teacher(
            here, name, logits, student, (*lgf_pairs_shape(student), options.window**2), "(B, T-1, H, W, window*window)",
            "Make it with local_gram_flow(teacher, window=...) on the student's grid and with the same window.",
        )  # fmt: skip
    return _lgf_kl(here, student, teachers, teacher_weights, token_weight, options, True, backend)


def _lgf_kl(here, student, teachers, teacher_weights, token_weight, options, from_logits: bool, backend) -> Tensor:
    weights = checks.teacher_weights(here, teacher_weights, len(teachers))
    if token_weight is not None:
        shape = lgf_pairs_shape(student)
        checks.weight_tensor(here, "token_weight", token_weight, student, shape, "(B, T-1, H, W)")
        token_weight = token_weight.to(accumulate_dtype(student))
    name = resolve("lgf_kl", student, backend, here)
    return ops.lgf_kl(student, teachers, weights, token_weight, options, from_logits, name)


def token_relation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    pair_weight: Tensor,
    margin: float = 0.0,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Token relation distance: how every token of a video relates to every other, student against teacher.

    Over all pairs of the `n = F*N` tokens of one video, with both sides normalised, `f / max(||f||, 1e-6)`::

        S_Z[i, j] = < z_i, z_j >,  S_M[i, j] = < m_i, m_j >
        D[i, j]   = relu( |S_Z[i, j] - S_M[i, j]| - margin )
        loss_b    = sum_{f, g} pair_weight[f, g] * mean_{i in frame f, j in frame g} D[i, j]

    No n x n matrix is ever stored. (Half of one in half precision is, by the GPU kernels for a gradient, where it fits
    in 1 GiB, or as many MiB as the variable LGF_SCRATCH_MIB says; parts of one at a time where it does not.) The
    gradient flows to the student only, and once; it is made in the forward, so a forward whose student requires grad
    costs both. Pairs of frames of weight 0 are no part of the loss and cost nothing, unless the portable backend runs on
    a GPU, where reading the weights would make the host wait. NaN or inf in the features of a frame with any weight gives
    NaN; in those of a frame without, the loss is not touched, but the gradient may be NaN.

    Args:
        student: (B, F, H, W, C) or (B, F, N, C) float32, bfloat16, float16 or float64. All arithmetic accumulates in
            float32 (float64 for a float64 student), under autocast too.
        teacher: the same shape but for the channels, any of those types, without gradient.
        pair_weight: c, (F, F), real, >= 0, on the student's device, without gradient; usually from
            `moalign_pair_weight` or `videorepa_pair_weight`. The distances are symmetric, so only
            `(c + c^T) / 2` matters. Negative values raise on the CPU and are not looked for on other devices.
        margin: >= 0. Differences up to it are forgiven. 0 (default) is MoAlign's, 0.1 VideoREPA's.
        reduction: over the videos of the batch: "mean" (default), "sum" or "none".
        backend: None (default) for the first that can, or a name from `lgf_kernels.backends()`.

    Returns:
        A scalar, or (B,) for "none", in float32 (float64 for a float64 student).

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, and what to do.

    Source: VideoREPA, Token Relation Distillation; MoAlign, equations 5 to 8.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> student = torch.randn(2, 6, 4, 5, 32, requires_grad=True)
        >>> teacher = torch.randn(2, 6, 4, 5, 48)
        >>> lgf.token_relation_loss(student, teacher, pair_weight=lgf.moalign_pair_weight(6)).backward()
    """
    here = "token_relation_loss"
    margin = checks.number(here, "margin", margin, minimum=0.0)
    checks.choice(here, "reduction", reduction, checks.REDUCTIONS)
    checks.relation_features(here, student)
    checks.tensor(here, "teacher", teacher)
    checks.teacher(
        here, "teacher", teacher, student, (*student.shape[:-1], None),
        "(B, F, H, W, C)" if student.ndim == 5 else "(B, F, N, C)",
        "Only the number of channels may differ from the student's: resample the teacher to the student's grid first.",
    )  # fmt: skip
    frames = student.shape[1]
    checks.weight_tensor(here, "pair_weight", pair_weight, student, (frames, frames), "(F, F)")
    if student.ndim == 5:
        student, teacher = student.flatten(2, 3), teacher.flatten(2, 3)
    pair_weight = pair_weight.to(accumulate_dtype(student))
    name = resolve("token_relation", student, backend, here)
    return ops.token_relation(student, teacher, pair_weight, margin, reduction, name)


def moalign_pair_weight(num_frames: int, tau: float = 10.0, *, device: torch.device | str | None = None) -> Tensor:
    r"""Frame-pair weights of MoAlign's soft token relation distance::

        c[f, f] = 1 / F                              the spatial term
        c[f, g] = exp(-|f - g| / tau) / F^2          the temporal term, f != g

    MoAlign's norms are means over all entries, the zeroed same-frame entries of the temporal term included.

    Args:
        num_frames: F, at least 1.
        tau: in frames, > 0; how far apart two frames may be and still count. The paper uses 10.
        device: of the result; torch's default device if None.

    Returns:
        (F, F) float32, for `token_relation_loss(..., pair_weight=..., margin=0)`.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Source: MoAlign, equations 7 and 8.

    Example:
        >>> import lgf_kernels as lgf
        >>> lgf.moalign_pair_weight(2, tau=10.0)
        tensor([[0.5000, 0.2262],
                [0.2262, 0.5000]])
    """
    here = "moalign_pair_weight"
    F = checks.size(here, "num_frames", num_frames)
    tau = checks.number(here, "tau", tau, above=0.0)
    frame = torch.arange(F, device=device, dtype=torch.float32)
    weight = torch.exp(-(frame[:, None] - frame).abs() / tau) / F**2
    return weight.fill_diagonal_(1 / F)


def videorepa_pair_weight(
    num_frames: int, relations: str = "all", *, device: torch.device | str | None = None
) -> Tensor:
    r"""Frame-pair weights of VideoREPA's Token Relation Distillation.

    ==============  =============  ======================
    relations       c[f, f]        c[f, g], f != g
    ==============  =============  ======================
    "all"           1 / F^2        1 / F^2
    "spatial"       1 / F          0
    "temporal"      0              1 / (F (F - 1))
    ==============  =============  ======================

    Args:
        num_frames: F, at least 1; at least 2 for "temporal", which has no pairs otherwise.
        relations: "all" (default), "spatial" or "temporal".
        device: of the result; torch's default device if None.

    Returns:
        (F, F) float32, for `token_relation_loss(..., pair_weight=..., margin=0.1)`.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Source: VideoREPA, Token Relation Distillation.

    Example:
        >>> import lgf_kernels as lgf
        >>> lgf.videorepa_pair_weight(2, "temporal")
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]])
    """
    here = "videorepa_pair_weight"
    F = checks.size(here, "num_frames", num_frames)
    checks.choice(here, "relations", relations, ("all", "spatial", "temporal"))
    if relations == "all":
        return torch.full((F, F), 1 / F**2, device=device, dtype=torch.float32)
    if relations == "spatial":
        return torch.eye(F, device=device, dtype=torch.float32) / F
    if F < 2:
        raise ValueError(
            f'{here}: `num_frames` must be at least 2 for relations="temporal", which compares frames with other frames; '
            f'got {F}. Use relations="spatial" or "all" for single frames.'
        )
    return torch.full((F, F), 1 / (F * (F - 1)), device=device, dtype=torch.float32).fill_diagonal_(0)
