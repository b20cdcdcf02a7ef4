"""The Local Gram Flow loss, one pair of frames at a time.

    KL_i = sum_d P[i, d] (log P[i, d] - log Q[i, d])          d KL_i / d zS[i, d] = (Q - P)[i, d] / tau
    L2_i = mean_d (zS[i, d] - zT[i, d])^2                     d L2_i / d zS[i, d] = 2 (zS - zT)[i, d] / count_i

Only the logits' gradients are kept for backward: K*K numbers a token, and the teachers are not needed again.
"""

import torch
from torch import Tensor

from ..numerics import (
    accumulate_dtype,
    empty_residual,
    lgf_pairs_shape,
    non_finite_to_nan,
    reduce_tokens,
    token_scale,
    window_mask,
)
from ..options import LgfOptions
from .local_gram_flow import features_gradient, frame_pairs


def forward(
    student: Tensor,
    teachers: list[Tensor],
    teacher_weights: list[float],
    token_weight: Tensor | None,
    options: LgfOptions,
    from_logits: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and for backward the residual d KL_i / d zS, (directions, B, T-1, H, W, K*K), if needed."""
    values = student.new_zeros(lgf_pairs_shape(student), dtype=accumulate_dtype(student))
    residual = empty_residual(student, options, needs_grad)
    share = 1 / len(options.directions)
    for index, direction in enumerate(options.directions):
        one_way = options._replace(direction=direction)
        zT = fused_pairs(teachers, teacher_weights, one_way, from_logits, values.dtype)
        divergence = Divergence(student, one_way)
        for b, t, zS in frame_pairs(student, one_way):
            value, gradient = divergence(zS, next(zT), needs_grad)
            values[b, t] += share * value
            if needs_grad:
                torch.mul(gradient, share, out=residual[index, b, t])
    return reduce_tokens(non_finite_to_nan(values), token_weight, options.reduction), residual


def backward(
    grad_loss: Tensor, student: Tensor, residual: Tensor, token_weight: Tensor | None, options: LgfOptions
) -> Tensor:
    scale = token_scale(grad_loss, token_weight, options.reduction, lgf_pairs_shape(student))
    return features_gradient(student, dict(zip(options.directions, residual, strict=True)), scale, options)


def fused_pairs(teachers, teacher_weights, options: LgfOptions, from_logits: bool, dtype: torch.dtype):
    """Yield the fused teacher's logits (H, W, K*K), pair of frames by pair of frames."""
    if from_logits:
        streams = [(z for video in teacher for z in video) for teacher in teachers]
    else:
        streams = [(z for _, _, z in frame_pairs(teacher, options, dtype)) for teacher in teachers]
    for pair in zip(*streams, strict=True):
        yield sum(w * z.to(dtype) for w, z in zip(teacher_weights, pair, strict=True))


class Divergence:
    """KL or l2 of the tokens of one pair of frames: values (H, W) and their gradients (H, W, K*K)."""

    def __init__(self, student: Tensor, options: LgfOptions):
        self.options = options
        dtype = accumulate_dtype(student)
        inside = window_mask(*student.shape[2:4], options.window, student.device)
        member = inside if options.boundary == "exclude" else torch.ones_like(inside)
        self.outside, self.count = ~inside, member.sum(-1, keepdim=True).to(dtype)
        # Added to the logits: -inf takes a position out of the softmax.
        self.bias = torch.zeros_like(member, dtype=dtype).masked_fill_(~member, -torch.inf)

    def __call__(self, zS: Tensor, zT: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
        return (self.kl if self.options.divergence == "kl" else self.l2)(zS, zT, needs_grad)

    def kl(self, zS: Tensor, zT: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
        log_p, log_q = self.log_softmax(zT), self.log_softmax(zS)
        p, q = log_p.exp(), log_q.exp()
        # Outside the window both are -inf and their difference NaN; p is 0 there and so must be the term.
        difference = (log_p - log_q).masked_fill_(self.bias.isinf(), 0)
        # Adding Q - P, which sums to 0, cancels the rounding of the log-sums: near convergence that is all there is.
        excess = q.sub_(p)
        value = torch.addcmul(excess, p, difference).sum(-1)
        return value, excess.div_(self.options.temperature) if needs_grad else None

    def log_softmax(self, z: Tensor) -> Tensor:
        return (z.masked_fill(self.outside, 0) / self.options.temperature).add_(self.bias).log_softmax(-1)

    def l2(self, zS: Tensor, zT: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
        difference = (zS - zT).masked_fill_(self.outside, 0)
        value = difference.square().sum(-1) / self.count.squeeze(-1)
        return value, difference * (2 / self.count) if needs_grad else None
