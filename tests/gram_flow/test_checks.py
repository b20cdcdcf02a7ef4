"""Bad arguments of Local Gram Flow and its losses."""

import torch
from support.messages import check, refused
from support.numerics import features

import lgf_kernels as lgf

S = features(2, 3, 4, 5, 6)
T = features(2, 3, 4, 5, 7)
Z = torch.zeros(2, 2, 4, 5, 49)

kl, cached, flow = lgf.lgf_kl_loss, lgf.lgf_kl_loss_from_logits, lgf.local_gram_flow

BAD = {
    "rank": (lambda: kl(S[0], T), ValueError, ["`student`", "(B, T, H, W, C)", "(3, 4, 5, 6)", "unsqueeze(0)"]),
    "rank of features": (lambda: flow(S[0, 0]), ValueError, ["`features`", "(B, T, H, W, C)", "3 dimensions"]),
    "not a tensor": (lambda: kl(S.numpy(), T), TypeError, ["`student`", "torch.Tensor", "ndarray"]),
    "integers": (lambda: kl(S.int(), T), TypeError, ["`student`", "float32", "torch.int32", ".float()"]),
    "complex": (
        lambda: flow(S.to(torch.complex64)), TypeError,
        ["`features`", "complex64", "torch.view_as_real(features).flatten(-2)", "features.abs()"],
    ),
    "complex teacher": (lambda: kl(S, [T, T + 0j]), TypeError, ["torch.view_as_real(teachers[1]).flatten(-2)"]),
    "sparse": (lambda: kl(S.to_sparse(), T), TypeError, ["`student`", "dense", "torch.sparse_coo", "student.to_dense()"]),
    "sparse teacher of a flow": (lambda: kl(S, T.to_sparse()), TypeError, ["`teachers`", "dense", "to_dense()"]),
    "sparse token weights": (
        lambda: kl(S, T, token_weight=torch.ones(2, 2, 4, 5).to_sparse()), TypeError, ["`token_weight`", "dense"],
    ),
    "opaque layout": (lambda: flow(S.to_mkldnn()), TypeError, ["`features`", "dense", "mkldnn"]),
    "nested": (
        lambda: kl(torch.nested.nested_tensor([S[0]]), T), TypeError, ["`student`", "nested", "to_padded_tensor"],
    ),
    "one frame": (lambda: kl(S[:, :1], T[:, :1]), ValueError, ["`student`", "at least 2 frames", "got 1"]),
    "empty batch": (lambda: kl(S[:0], T[:0]), ValueError, ["`student`", "empty", "(0, 3, 4, 5, 6)"]),
    "no channels": (lambda: flow(S[..., :0]), ValueError, ["`features`", "empty", "(2, 3, 4, 5, 0)"]),
    "even window": (lambda: kl(S, T, window=6), ValueError, ["`window`", "odd", "6"]),
    "window 0": (lambda: flow(S, window=0), ValueError, ["`window`", "between 1 and 15", "0"]),
    "negative window": (lambda: kl(S, T, window=-3), ValueError, ["`window`", "-3"]),
    "large window": (lambda: kl(S, T, window=17), ValueError, ["`window`", "15", "17"]),
    "fractional window": (lambda: kl(S, T, window=7.0), TypeError, ["`window`", "int", "7.0"]),
    "a window that is a bool": (lambda: kl(S, T, window=True), TypeError, ["`window`", "int", "bool True"]),
    "a cache's window that is a bool": (lambda: cached(S, Z, window=True), TypeError, ["`window`", "bool True"]),
    "a flow's window that is a bool": (lambda: flow(S, window=True), TypeError, ["`window`", "bool True"]),
    "a module's window that is a bool": (lambda: lgf.LocalGramFlowKLLoss(True), TypeError, ["`window`", "bool True"]),
    "a mask's window that is a bool": (lambda: lgf.local_window_mask(4, 5, True), TypeError, ["`window`", "bool True"]),
    "a height that is a bool": (lambda: lgf.local_window_mask(True, 5), TypeError, ["`height`", "bool True"]),
    "a width that is a bool": (lambda: lgf.local_window_mask(4, True), TypeError, ["`width`", "bool True"]),
    "a temperature that is a bool": (lambda: kl(S, T, temperature=True), TypeError, ["`temperature`", "> 0", "bool True"]),
    "a weight that is a bool": (
        lambda: kl(S, [T, T], teacher_weights=[1, False]), TypeError, ["`teacher_weights[1]`", "number >= 0", "bool False"],
    ),
    "mask window": (lambda: lgf.local_window_mask(4, 5, 4), ValueError, ["local_window_mask", "`window`", "4"]),
    "mask height": (lambda: lgf.local_window_mask(0, 5), ValueError, ["`height`", "at least 1", "0"]),
    "temperature 0": (lambda: kl(S, T, temperature=0), ValueError, ["`temperature`", "> 0", "0.0"]),
    "a temperature that float32 has no reciprocal of": (
        lambda: kl(S, T, temperature=1e-39), ValueError, ["`temperature`", "at least 1.1754943508222875e-38", "float32", "1e-39"],
    ),
    "a module's temperature that is 0 in float32": (
        lambda: lgf.LocalGramFlowKLLoss(temperature=1e-50), ValueError, ["LocalGramFlowKLLoss", "`temperature`", "1e-50"],
    ),
    "infinite temperature": (lambda: kl(S, T, temperature=float("inf")), ValueError, ["`temperature`", "finite", "inf"]),
    "NaN temperature": (lambda: cached(S, Z, temperature=float("nan")), ValueError, ["`temperature`", "nan"]),
    "tensor temperature": (lambda: kl(S, T, temperature=torch.tensor(0.1)), TypeError, ["`temperature`", "Tensor"]),
    "similarity": (lambda: kl(S, T, similarity="cos"), ValueError, ["`similarity`", "'cosine', 'dot'", "'cos'"]),
    "boundary": (lambda: flow(S, boundary="pad"), ValueError, ["`boundary`", "'exclude', 'zero'", "'pad'"]),
    "divergence": (lambda: kl(S, T, divergence="js"), ValueError, ["`divergence`", "'kl', 'l2'", "'js'"]),
    "direction": (lambda: kl(S, T, direction="up"), ValueError, ["`direction`", "'both'", "'up'"]),
    "both directions of logits": (lambda: flow(S, direction="both"), ValueError, ["`direction`", "call twice"]),
    "direction of a cache": (
        lambda: cached(S, Z, logits_direction="both"),
        ValueError,
        ["`logits_direction`", "'forward', 'backward'", "'both'"],
    ),
    "reduction": (lambda: kl(S, T, reduction=None), ValueError, ["`reduction`", "'mean', 'sum', 'none'", "None"]),
    "reductions in an array": (lambda: kl(S, T, reduction=S[0, 0, 0, 0].numpy()), ValueError, ["`reduction`", "'mean'", "array"]),
    "no teachers": (lambda: kl(S, []), ValueError, ["`teachers`", "at least one", "empty"]),
    "teachers of the wrong kind": (lambda: kl(S, {"a": T}), TypeError, ["`teachers`", "sequence", "dict"]),
    "text as teachers": (lambda: kl(S, "T"), TypeError, ["`teachers[0]`", "torch.Tensor", "str"]),
    "a teacher that is no tensor": (lambda: kl(S, [T, 3]), TypeError, ["`teachers[1]`", "torch.Tensor", "int"]),
    "teacher's grid": (
        lambda: kl(S, [T, T[:, :, :3]]), ValueError,
        ["`teachers[1]`", "(2, 3, 4, 5, any)", "(2, 3, 3, 5, 7)", "resample"],
    ),
    "teacher's rank": (lambda: kl(S, T[0]), ValueError, ["`teachers`", "(2, 3, 4, 5, any)", "(3, 4, 5, 7)"]),
    "teacher's channels": (lambda: kl(S, T[..., :0]), ValueError, ["`teachers`", "empty"]),
    "teacher of integers": (lambda: kl(S, T.long()), TypeError, ["`teachers`", "int64"]),
    "teacher that requires grad": (
        lambda: kl(S, [T, T.clone().requires_grad_()]), ValueError, ["`teachers[1]`", "requires grad", ".detach()"],
    ),
    "cache that requires grad": (lambda: cached(S, Z.clone().requires_grad_()), ValueError, ["`teacher_logits`", "etach"]),
    "too few weights": (lambda: kl(S, [T, T], teacher_weights=[1]), ValueError, ["`teacher_weights`", "2", "got 1"]),
    "negative weight": (
        lambda: kl(S, [T, T], teacher_weights=[1, -0.5]), ValueError, ["`teacher_weights[1]`", ">= 0", "-0.5"],
    ),
    "NaN weight": (lambda: kl(S, T, teacher_weights=[float("nan")]), ValueError, ["`teacher_weights[0]`", "nan"]),
    "tensor of weights": (lambda: kl(S, T, teacher_weights=torch.ones(1)), TypeError, ["`teacher_weights`", "tolist"]),
    "text as weights": (lambda: kl(S, T, teacher_weights="1"), TypeError, ["`teacher_weights[0]`", "number >= 0", "str '1'"]),
    "number as weights": (lambda: kl(S, T, teacher_weights=1.0), TypeError, ["`teacher_weights`", "sequence", "float"]),
    "cache's window": (
        lambda: cached(S, Z, window=5), ValueError, ["`teacher_logits`", "(2, 2, 4, 5, 25)", "(2, 2, 4, 5, 49)", "local_gram_flow"],
    ),
    "token weights' shape": (
        lambda: kl(S, T, token_weight=torch.ones(2, 3, 4, 5)), ValueError,
        ["`token_weight`", "(B, T-1, H, W)", "(2, 2, 4, 5)", "(2, 3, 4, 5)", "expand"],
    ),
    "negative token weight": (
        lambda: kl(S, T, token_weight=-torch.ones(2, 2, 4, 5)), ValueError, ["`token_weight`", ">= 0", "-1", "clamp"],
    ),
    "negative token weight next to a cache": (
        lambda: cached(S, Z, token_weight=-torch.ones(2, 2, 4, 5)), ValueError,
        ["lgf_kl_loss_from_logits:", "`token_weight`", ">= 0"],
    ),
    "token weights that require grad": (
        lambda: kl(S, T, token_weight=torch.ones(2, 2, 4, 5, requires_grad=True)), ValueError,
        ["`token_weight`", "requires grad", "etach"],
    ),
    "one negative token weight": (
        lambda: kl(S, T, token_weight=torch.arange(-1, 79).view(2, 2, 4, 5)), ValueError, ["`token_weight`", "minimum of -1"],
    ),
    "complex token weights": (
        lambda: kl(S, T, token_weight=torch.ones(2, 2, 4, 5) + 0j), TypeError,
        ["`token_weight`", "real", "complex64", "token_weight.abs()"],
    ),
    "mask device": (
        lambda: lgf.local_window_mask(4, 5, device="gpu"), ValueError,
        ["local_window_mask", "`device`", "'cuda'", "'gpu'", "student.device"],
    ),
    "mask device of the wrong kind": (
        lambda: lgf.local_window_mask(4, 5, device=0.5), TypeError, ["local_window_mask", "`device`", "0.5"],
    ),
    "mask width": (lambda: lgf.local_window_mask(4, 0), ValueError, ["`width`", "at least 1", "0"]),
    "devices": (lambda: kl(S, T.to("meta")), ValueError, ["`teachers`", "cpu", "meta", ".to("]),
    "device of token weights": (
        lambda: kl(S, T, token_weight=torch.ones(2, 2, 4, 5, device="meta")), ValueError, ["`token_weight`", "meta"],
    ),
    "unknown backend": (lambda: kl(S, T, backend="cuda"), ValueError, ["`backend`", "'native', 'triton'", "'cuda'"]),
    "module's window": (lambda: lgf.LocalGramFlowKLLoss(window=8), ValueError, ["LocalGramFlowKLLoss", "`window`", "8"]),
    "module's weights": (
        lambda: lgf.LocalGramFlowKLLoss(teacher_weights=(1, -1)), ValueError, ["`teacher_weights[1]`", "-1"],
    ),
    "module's single weight": (
        lambda: lgf.LocalGramFlowKLLoss(teacher_weights=0.5), TypeError, ["LocalGramFlowKLLoss", "`teacher_weights`", "float"],
    ),
    "module's no weights": (
        lambda: lgf.LocalGramFlowKLLoss(teacher_weights=()), ValueError, ["`teacher_weights`", "at least one", "got 0"],
    ),
    "module's backend": (lambda: lgf.LocalGramFlowKLLoss(backend="fast"), ValueError, ["`backend`", "'fast'"]),
    "a module's backend without a name": (
        lambda: lgf.LocalGramFlowKLLoss(backend=""), ValueError, ["LocalGramFlowKLLoss", "`backend`", "got ''"],
    ),
}  # fmt: skip


@refused(BAD)
def test_message(call, error, words):
    check(call, error, words)


def test_a_teacher_that_requires_grad_is_fine_where_no_gradients_are_made():
    with torch.no_grad():
        kl(S, T.clone().requires_grad_())


def test_all_zero_token_weights_are_nothing_over_nothing():
    zeros = torch.zeros(2, 2, 4, 5)
    assert kl(S, T, token_weight=zeros).isnan()
    assert kl(S, T, token_weight=zeros, reduction="sum") == 0
