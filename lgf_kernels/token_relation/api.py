"""Token relation distances, as functions and a module, with the specification and the checks of all arguments."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core import checks
from ..core.numerics import accumulate_dtype
from ..core.registry import call_of, checked_backend, resolve
from . import operators
from .options import RelationOptions, checked_options


def token_relation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    pair_weight: Tensor,
    margin: float = 0.0,
    distance: str = "l1",
    negatives: str = "keep",
    similarity: str = "cosine",
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Token relation distance: how every token of a video relates to every other, student against teacher.

    Over all pairs of the `n = F*N` tokens of one video, with both sides normalised, `f / max(||f||, 1e-6)`::

        S_Z[i, j] = < z_i, z_j >,  S_M[i, j] = < m_i, m_j >
        D[i, j]   = relu( |S_Z[i, j] - S_M[i, j]| - margin )        or its square, for distance "l2"
        loss_b    = sum_{f, g} pair_weight[f, g] * mean_{i in frame f, j in frame g} D[i, j]

    No n x n matrix is ever stored. (For a gradient, the GPU kernels store half of one in half
    precision if it fits in 1 GiB, or as many MiB as the variable LGF_SCRATCH_MIB says, and
    otherwise parts of it, one at a time.) The gradient flows to the student only, and once; it is
    computed in the forward, so a forward whose student requires grad costs both. Pairs of frames of
    weight 0 are no part of the loss and cost nothing, unless the portable backend runs on a GPU,
    where reading the weights would make the host wait. NaN or inf in the features of a frame with
    any weight gives NaN; in those of a frame without weight it leaves the loss unchanged, but the
    gradient may be NaN.

    Args:
        student: (B, F, H, W, C) or (B, F, N, C) float32, bfloat16, float16 or float64. All arithmetic accumulates in
            float32 (float64 for a float64 student), under autocast too.
        teacher: the same shape but for the channels, any of those types, without gradient.
        pair_weight: c, (F, F), real, >= 0, on the student's device, without gradient; usually from
            `moalign_pair_weight` or `videorepa_pair_weight`. The distances are symmetric, so only
            `(c + c^T) / 2` matters. Negative values raise on the CPU and are not checked on other devices.
        margin: >= 0. Differences up to it are forgiven. 0 (default) is MoAlign's, 0.1 VideoREPA's. With "l2" it must be 0:
            squares count small differences little anyway, and no published loss forgives them.
        distance: "l1" (default), or "l2" for the squared difference of DINOv3's Gram loss and SARA's autocorrelation.
        negatives: "keep" (default); "clamp" replaces similarities below 0 by 0 on both sides, with no gradient through
            them; "clamp-teacher" replaces the teacher's alone.
        similarity: "cosine" (default), or "dot" for features that are not normalised.
        reduction: over the videos of the batch: "mean" (default), "sum" or "none".
        backend: None (default) for the first that can, or a name from `lgf_kernels.backends()`.

    Returns:
        A scalar, or (B,) for "none", in float32 (float64 for a float64 student).

    Raises:
        TypeError, ValueError: an argument is wrong; the message says which, and what to do.

    DINOv3's `GramLoss` is `distance="l2"` with the weights `videorepa_pair_weight(F, "spatial")`, whose F frames are its
    images: of a batch (B, N, C), `student[None]`. Its options here:

    ==========================  ==================================================================================
    GramLoss                    here
    ==========================  ==================================================================================
    apply_norm=False            similarity="dot"
    img_level=False             the weights `videorepa_pair_weight(F, "all")`: the batch is one Gram matrix
    remove_neg=True             negatives="clamp"
    remove_only_teacher_neg     negatives="clamp-teacher". The public code clears the teacher's negatives first, so that
                                its next line, which is to clear the student's where both are negative, never acts
    ==========================  ==================================================================================

    It normalises by `max(||f||, 1e-12)`, which differs for norms below 1e-6. For videos (B, F, N, C) as a batch of images,
    flatten first: `student.flatten(0, 1)[None]`. SARA compares the autocorrelations of an image's normalised patches by the
    squared Frobenius norm, a sum over the N * N pairs: that is N * N times the mean here.

    Source: VideoREPA, Token Relation Distillation; MoAlign, equations 5 to 8; DINOv3, Gram anchoring; SARA.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> student = torch.randn(2, 6, 4, 5, 32, requires_grad=True)
        >>> teacher = torch.randn(2, 6, 4, 5, 48)
        >>> lgf.token_relation_loss(student, teacher, pair_weight=lgf.moalign_pair_weight(6)).backward()
    """
    here = "token_relation_loss"
    options = checked_options(
        here, margin=margin, distance=distance, negatives=negatives, similarity=similarity, reduction=reduction
    )
    checks.relation_features(here, student)
    checks.tensor(here, "teacher", teacher)
    checks.teacher(
        here, "teacher", teacher, student, (*student.shape[:-1], None),
        "(B, F, H, W, C)" if student.ndim == 5 else "(B, F, N, C)",
        "Only the number of channels may differ from the student's: resample the teacher to the student's grid first.",
    )  # fmt: skip
    frames = student.shape[1]
    checks.weight_tensor(
        here, "pair_weight", pair_weight, student, (frames, frames), "(F, F)",
        "Make it for the student's frames: moalign_pair_weight(student.shape[1]) or videorepa_pair_weight(student.shape[1]).",
    )  # fmt: skip
    if student.ndim == 5:
        student, teacher = student.flatten(2, 3), teacher.flatten(2, 3)
    pair_weight = pair_weight.to(accumulate_dtype(student))
    name = resolve(call_of("token_relation", student, **options.facts()), backend, here)
    return operators.token_relation(student, teacher, pair_weight, options, name)


def moalign_pair_weight(
    num_frames: int,
    tau: float = 10.0,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Frame-pair weights of MoAlign's soft token relation distance::

        c[f, f] = 1 / F                              the spatial term
        c[f, g] = exp(-|f - g| / tau) / F^2          the temporal term, f != g

    MoAlign's norms are means over all entries, the zeroed same-frame entries of the temporal term included.

    Args:
        num_frames: F, at least 1.
        tau: in frames, > 0; how far apart two frames may be and still count. The paper uses 10. `math.inf` weighs all alike.
        device: of the result; torch's default device if None.
        dtype: of the result, float32 (default) or float64: of a float64 student, whose loss otherwise has weights that are
            rounded to float32.

    Returns:
        (F, F), for `token_relation_loss(..., pair_weight=..., margin=0)`.

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
    tau = checks.scale(here, "tau", tau, infinite=True)
    frame = torch.arange(F, device=checks.device(here, device), dtype=checks.weight_dtype(here, dtype))
    weight = torch.exp(-(frame[:, None] - frame).abs() / tau) / F**2
    return weight.fill_diagonal_(1 / F)


def videorepa_pair_weight(
    num_frames: int,
    relations: str = "all",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
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
        dtype: of the result, float32 (default) or float64: of a float64 student, whose loss otherwise has weights that are
            rounded to float32.

    Returns:
        (F, F), for `token_relation_loss(..., pair_weight=..., margin=0.1)`.

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
    checks.weight_dtype(here, dtype)
    device = checks.device(here, device)
    if relations == "all":
        return torch.full((F, F), 1 / F**2, device=device, dtype=dtype)
    if relations == "spatial":
        return torch.eye(F, device=device, dtype=dtype) / F
    if F < 2:
        raise ValueError(
            f'{here}: `num_frames` must be at least 2 for relations="temporal", which compares frames with other frames; '
            f'got {F}. Use relations="spatial" or "all" for single frames.'
        )
    return torch.full((F, F), 1 / (F * (F - 1)), device=device, dtype=dtype).fill_diagonal_(0)


class Form(NamedTuple):
    """A published form: `relations` of `videorepa_pair_weight`, or "moalign", and options of `token_relation_loss`."""

    relations: str
    margin: float = 0.0
    distance: str = "l1"
    negatives: str = "keep"


FORMS = {
    "moalign": Form("moalign"),
    "videorepa": Form("all", margin=0.1),
    "videorepa-spatial": Form("spatial", margin=0.1),
    "videorepa-temporal": Form("temporal", margin=0.1),
    "gram": Form("spatial", distance="l2"),
    "gram-clamped": Form("spatial", distance="l2", negatives="clamp"),
    "sara": Form("spatial", distance="l2"),
}


class TokenRelationLoss(nn.Module):
    """`token_relation_loss` in one of its published forms: `loss(student, teacher)`.

    ====================  ========  ======  =========  ========================================
    form                  distance  margin  negatives  pair weights
    ====================  ========  ======  =========  ========================================
    "moalign"             "l1"      0       "keep"     `moalign_pair_weight(F, tau)`
    "videorepa"           "l1"      0.1     "keep"     `videorepa_pair_weight(F, "all")`
    "videorepa-spatial"   "l1"      0.1     "keep"     `videorepa_pair_weight(F, "spatial")`
    "videorepa-temporal"  "l1"      0.1     "keep"     `videorepa_pair_weight(F, "temporal")`
    "gram"                "l2"      0       "keep"     `videorepa_pair_weight(F, "spatial")`
    "gram-clamped"        "l2"      0       "clamp"    `videorepa_pair_weight(F, "spatial")`
    "sara"                "l2"      0       "keep"     `videorepa_pair_weight(F, "spatial")`
    ====================  ========  ======  =========  ========================================

    "gram" is DINOv3's Gram loss, each frame an image, and "gram-clamped" the same with its option remove_neg. "sara" is
    SARA's autocorrelation as a mean over pairs: "gram" by another name, 1 / N^2 of the Frobenius norm that SARA writes.

    Args:
        form: one of the above; default "moalign".
        tau: in frames, for "moalign"; the paper uses 10, and `math.inf` weighs all pairs of frames alike.
        margin: >= 0, or None (default) for the form's own; 0 for "l2".
        distance, negatives: None (default) for the form's own, or as in `lgf_kernels.token_relation_loss`.
        similarity, reduction, backend: as in `lgf_kernels.token_relation_loss`.

    Shapes: student (B, F, H, W, C) or (B, F, N, C); teacher the same but for the channels.

    Raises:
        TypeError, ValueError: an option is wrong.

    Source: VideoREPA, Token Relation Distillation; MoAlign, equations 5 to 8; DINOv3, Gram anchoring; SARA.

    Example:
        >>> import torch, lgf_kernels as lgf
        >>> criterion = lgf.TokenRelationLoss("videorepa")
        >>> student = torch.randn(1, 6, 20, 32, requires_grad=True)
        >>> criterion(student, torch.randn(1, 6, 20, 48)).backward()
    """

    def __init__(
        self,
        form: str = "moalign",
        tau: float = 10.0,
        margin: float | None = None,
        reduction: str = "mean",
        backend: str | None = None,
        *,
        distance: str | None = None,
        negatives: str | None = None,
        similarity: str = "cosine",
    ):
        super().__init__()
        here = "TokenRelationLoss"
        self.form = checks.choice(here, "form", form, tuple(FORMS))
        self.tau = checks.scale(here, "tau", tau, infinite=True)
        own = FORMS[form]
        self.relations = own.relations
        if margin is None:
            margin = own.margin if distance in (None, own.distance) else 0.0
        self.margin, self.distance, self.negatives, self.similarity, self.reduction = checked_options(
            here,
            margin=margin,
            distance=own.distance if distance is None else distance,
            negatives=own.negatives if negatives is None else negatives,
            similarity=similarity,
            reduction=reduction,
        )
        self.backend = checked_backend(backend, here)

    def pair_weight(self, num_frames: int, device=None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the form's frame-pair weights, (F, F)."""
        if self.relations == "moalign":
            return moalign_pair_weight(num_frames, self.tau, device=device, dtype=dtype)
        return videorepa_pair_weight(num_frames, self.relations, device=device, dtype=dtype)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        checks.relation_features("TokenRelationLoss", student)
        return token_relation_loss(
            student,
            teacher,
            pair_weight=self.pair_weight(student.shape[1], student.device, accumulate_dtype(student)),
            **{name: getattr(self, name) for name in (*RelationOptions._fields, "backend")},
        )

    def extra_repr(self) -> str:
        shown = ("form", "tau", *RelationOptions._fields, "backend")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
