"""The CPU kernels of Local Gram Flow: instruction sets, threads, extremes of types, and bad calls."""

import os
import subprocess
import sys

import pytest
import torch
from support.numerics import assert_close, double, features, value_and_gradient
from support.pairs import every_pair

import lgf_kernels as lgf
from lgf_kernels.core import native

cpu, reason = native.load("cpu")
pytestmark = pytest.mark.skipif(cpu is None, reason=f"no native module: {reason}")


def both(student, teachers, **options):
    return value_and_gradient(lgf.lgf_kl_loss, student, teachers, backend="native", **options)


@every_pair(
    dtype=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    shape=((1, 2, 1, 1, 1), (2, 3, 1, 7, 3), (1, 3, 9, 1, 17), (1, 4, 6, 21, 70)),
    window=(3, 7, 13),
)
def test_every_instruction_set(isa, window, shape, dtype):
    student = features(*shape, dtype=dtype)
    teachers = [features(*shape[:4], 5, dtype=dtype), features(*shape[:4], 40)]
    options = dict(window=window, direction="both", similarity="dot", temperature=3.0)
    value, gradient = both(student, teachers, **options)
    truth = value_and_gradient(lgf.lgf_kl_loss, student.double(), double(teachers), backend="reference", **options)
    assert_close(value, truth[0], 1e-5, absolute=1e-7)
    limit = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 4e-3, torch.float16: 2e-3}[dtype]
    assert_close(gradient, truth[1], limit, absolute=1e-7)


# Rows of queries that are read where they lie (float32 and float64, whole panels of channels), and what keeps one from it.
ROWS = {
    "in place": (64, lambda f: f),
    "two panels and a half": (160, lambda f: f),
    "pages apart": (1024, lambda f: f),
    "room between tokens": (64, lambda f: torch.cat([f, f], -1)[..., :64]),
    "columns before rows": (64, lambda f: f.transpose(2, 3).contiguous().transpose(2, 3)),
    "products that overflow": (64, lambda f: torch.where(torch.arange(9)[:, None] % 4 == 0, f[:, :1].sign() * 3e38, f)),
    "norms below the floor": (64, lambda f: f * torch.where(torch.arange(9) % 4 == 0, 1e-12, 1.0)[:, None]),
    "tokens of zeros": (64, lambda f: f * (torch.arange(9) != 3)[:, None]),
}


@every_pair(
    dtype=(torch.float32, torch.float64), row=tuple(ROWS), direction=("forward", "backward", "both"), batch=(1, 2)
)
def test_rows_in_place(isa, dtype, row, direction, batch):
    channels, change = ROWS[row]
    student, *teachers = (change(features(batch, 4, 5, 9, channels)).to(dtype) for _ in range(3))
    options = dict(window=3, direction=direction)
    value, gradient = both(student, teachers, **options)
    truth = value_and_gradient(lgf.lgf_kl_loss, student.double(), double(teachers), backend="reference", **options)
    limit = 1e-5 if dtype == torch.float32 else 1e-12
    assert_close(value, truth[0], limit)
    assert_close(gradient, truth[1], limit)
    # In the units of each token, whose sizes differ; a gradient of 1e-39 has few digits.
    assert_close(gradient * student, truth[1] * student.double(), 1e-3 if row == "products that overflow" else limit)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_among_rows_in_place(isa, bad):
    student, teacher = features(1, 3, 8, 9, 64), features(1, 3, 8, 9, 64)
    student[0, 1, 4, 4, 7] = bad
    kl, gradient = both(student, teacher, window=3, reduction="none")
    truth = value_and_gradient(
        lgf.lgf_kl_loss, student.double(), double(teacher), backend="reference", window=3, reduction="none"
    )
    assert kl.isnan().equal(truth[0].isnan()) and kl.isnan().sum() == 10
    assert gradient.isnan().equal(truth[1].isnan())
    assert_close(kl.nan_to_num(), truth[0].nan_to_num(), 1e-5)
    assert_close(gradient.nan_to_num(), truth[1].nan_to_num(), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_converts_as_torch_does(isa, dtype):
    """Every bit pattern in, and out again: gradients are rounded to nearest even, subnormals, inf and NaN included."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(dtype).view(1, 2, 1, 2**15, 1)
    z = lgf.local_gram_flow(every, window=1, similarity="dot", backend="native")
    torch.testing.assert_close(z.flatten(), every.float().prod(1).flatten(), equal_nan=True, rtol=0, atol=0)
    ones = torch.ones(1, 2, 1, 2**15, 1, dtype=dtype, requires_grad=True)
    fine = torch.linspace(-3, 3, 2**15).exp() * torch.logspace(-12, 6, 2**15)
    fine[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    upstream = fine.view(1, 1, 1, 2**15, 1)
    lgf.local_gram_flow(ones, window=1, similarity="dot", backend="native").backward(upstream)
    torch.testing.assert_close(ones.grad[:, :1], upstream.to(dtype), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("cached", [False, True])
def test_frames_taller_than_a_band_of_rows(isa, cached):
    student, teachers = features(1, 3, 70, 5, 9), [features(1, 3, 70, 5, 4), features(1, 3, 70, 5, 6)]
    options = dict(window=5, token_weight=torch.rand(1, 2, 70, 5))
    loss = lgf.lgf_kl_loss_from_logits if cached else lgf.lgf_kl_loss
    if cached:
        teachers = [lgf.local_gram_flow(teacher, window=5, backend="reference") for teacher in teachers]
    value, gradient = value_and_gradient(loss, student, teachers, backend="native", **options)
    truth = value_and_gradient(loss, student.double(), double(teachers), backend="reference", **options)
    assert_close(value, truth[0], 1e-5)
    assert_close(gradient, truth[1], 1e-5)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_rows_of_weight_zero(isa, direction):
    student, teacher, weight = features(1, 3, 24, 11, 20), features(1, 3, 24, 11, 9), torch.rand(1, 2, 24, 11)
    weight[:, :, :16] = 0
    options = dict(direction=direction, token_weight=weight)
    truth = value_and_gradient(lgf.lgf_kl_loss, student.double(), teacher.double(), backend="reference", **options)
    student[:, :, :13] = torch.nan  # that is not looked at
    value, gradient = both(student, teacher, **options)
    assert_close(value, truth[0], 1e-5)
    assert_close(gradient, truth[1], 1e-5)


def test_cached_logits_with_room_between_tokens(isa):
    student, cache = features(1, 3, 5, 19, 6), torch.randn(1, 2, 5, 19, 64)[..., :49]
    loss = lgf.lgf_kl_loss_from_logits(student, cache, backend="native")
    assert torch.equal(loss, lgf.lgf_kl_loss_from_logits(student, cache.contiguous(), backend="native"))


@pytest.mark.parametrize("divergence", ["kl", "l2"])
def test_gradient_of_a_divergence_that_is_not_finite(isa, divergence):
    """Finite features whose product overflows: softmax alone would make a finite gradient of the infinite loss."""
    student = torch.zeros(1, 2, 5, 40, 1)
    student[0, 0, 2, 20], student[0, 1, 2, 21] = 1e20, -1e20
    options = dict(window=3, similarity="dot", divergence=divergence, reduction="none")
    tokens, gradient = both(student, torch.zeros_like(student), **options)
    hit = torch.zeros(5, 40, dtype=torch.bool)
    hit[2, 20] = True
    assert torch.equal(tokens[0, 0].isnan(), hit)
    assert torch.equal(gradient[0, 0, :, :, 0].isnan(), hit)


def softmax_beside_a_sure_student(logits):
    """P (W - 1) of a teacher's logits (W) for the token before, against 0 for the token itself and far less for that after.

    The student is so sure of the token itself that Q is 0 elsewhere: there the gradient Q - P shows P to the last bit.
    """
    W, dtype = len(logits), logits.dtype
    student = 1e3 * torch.eye(3, dtype=dtype)[torch.arange(W) % 3].expand(1, 2, 1, W, 3)
    cache = torch.zeros(1, 1, 1, W, 9, dtype=dtype)
    cache[..., 3], cache[..., 5] = logits, -1e3
    kl, g = cache.new_empty(1, 1, 1, W), torch.empty_like(cache)
    native.module(student).lgf_kl_forward(
        native.described(student), [native.described(cache)], [1.0], tuple(student.shape[:4]), kl.data_ptr(), g.data_ptr(),
        window=3, temperature=1.0, similarity="dot", boundary="exclude", divergence="kl", backward=False, from_logits=True,
        token_weight=None, num_threads=1,
    )  # fmt: skip
    return -g[0, 0, 0, 1:, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponentials_are_right_to_a_few_units_in_the_last_place(isa, dtype):
    logits = -torch.linspace(0, 85, 4099, dtype=dtype)
    p = softmax_beside_a_sure_student(logits)
    truth = logits[1:].double().sigmoid()
    assert ((p.double() - truth) / truth).abs().max() < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
def test_near_convergence_every_token_is_right(isa, distance):
    """P u + Q - P alone would be a difference of numbers many times its size."""
    teacher = features(1, 3, 9, 10, 64)
    student = teacher + distance * features(1, 3, 9, 10, 64)
    tokens = lgf.lgf_kl_loss(student, teacher, reduction="none", backend="native")
    truth = lgf.lgf_kl_loss(student.double(), teacher.double(), reduction="none", backend="reference")
    assert_close(tokens, truth, 2e-7 / distance)
    # The oracle itself has lost half of its digits at the smallest distance.
    fine = lgf.lgf_kl_loss(student.double(), teacher.double(), reduction="none", backend="native")
    assert_close(fine, truth, 1e-14 / distance**2)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_logits_far_below_zero_beside_the_border(isa, side):
    """The largest logit of a window that is cut off is the largest inside, not the 0 that stands outside."""
    tensors = {"student": features(1, 2, 5, 20, 8), "teacher": features(1, 2, 5, 20, 8)}
    tensors[side] = 3 * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1) + 0.1 * tensors[side]
    options = dict(window=5, similarity="dot", temperature=0.5)
    ours = both(tensors["student"], tensors["teacher"], **options)
    doubles = [tensors[name].double() for name in ("student", "teacher")]
    truth = value_and_gradient(lgf.lgf_kl_loss, *doubles, backend="reference", **options)
    for our, true in zip(ours, truth, strict=True):
        assert_close(our, true, 1e-5)


def test_logits_as_large_as_a_type_holds(isa):
    """The logits are one number each, the student's positive and the teacher's negative: no divergence, no overflow."""
    student = torch.full((1, 2, 5, 20, 1), 3e37).sqrt()
    teacher = student * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)
    tokens, gradient = both(student, teacher, window=3, similarity="dot", reduction="none")
    assert (tokens == 0).all() and (gradient == 0).all()


def test_a_norm_whose_square_overflows(isa):
    huge, teacher = features(1, 3, 4, 19, 70) * 1e25, features(1, 3, 4, 19, 70)
    truth = value_and_gradient(lgf.lgf_kl_loss, huge.double(), teacher.double(), window=3, backend="reference")
    value, gradient = both(huge, teacher, window=3)
    assert_close(value, truth[0], 1e-5)
    assert_close(gradient.double() * 1e25, truth[1] * 1e25, 1e-5)


@pytest.mark.parametrize("kept", [None, (0, 3), (5, 6), (30, 33), (0, 0)], ids=str)
def test_threads_change_no_bit(isa, kept):
    """`kept`: which of the 66 rows of queries have weights. Threads get as much work each, some of them none."""
    weight = kept and torch.zeros(66, 13)
    if kept:
        weight[slice(*kept)] = torch.rand(13)
        weight = weight.view(2, 3, 11, 13)
    student, teachers = features(2, 4, 11, 13, 40), [features(2, 4, 11, 13, 24), features(2, 4, 11, 13, 9)]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5, 64):
            torch.set_num_threads(count)
            results.append(both(student, teachers, direction="both", token_weight=weight, reduction="sum"))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_isa_by_environment():
    code = (
        "from lgf_kernels.core import native; print(native.load('cpu')[1] or native.load('cpu')[0].build_info()['isa'])"
    )

    def chosen(isa):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env={**os.environ, "LGF_CPU_ISA": isa}, capture_output=True, text=True).stdout

    assert chosen("baseline") == "baseline\n"
    refused = chosen("mmx")
    assert "mmx" in refused and "baseline" in refused


def test_an_isa_that_is_not_here_is_no_quiet_choice_of_another_backend():
    """Calls end with the reason, a named other backend runs, and reports are made."""
    code = (
        "import torch, lgf_kernels as lgf; from lgf_kernels import doctor; f = torch.ones(1, 2, 3, 3, 4);"
        "lgf.local_gram_flow(f, window=3, backend='portable'); print(doctor.as_text(doctor.examine()));"
        "lgf.local_gram_flow(f, window=3)"
    )
    environment = {**os.environ, "LGF_CPU_ISA": "avx1024"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    message = "the variable LGF_CPU_ISA asks for the 'avx1024' kernels"
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1] and message in done.stdout


def test_build_info_is_for_bug_reports():
    info = cpu.build_info()
    assert info["version"] == lgf.__version__ and info["isa"] in info["isas_compiled"]
    assert info["compiler"] and info["flags"] and info["cxx_standard"] >= 201703


def test_bad_calls_raise():
    f = features(1, 2, 3, 4, 5)
    good = native.described(f)
    common = dict(similarity="cosine", backward=False, num_threads=1)
    out = torch.empty(1, 1, 3, 4, 9)
    with pytest.raises(ValueError, match="window"):
        cpu.local_gram_flow(good, (1, 2, 3, 4), out.data_ptr(), window=4, **common)
    with pytest.raises(ValueError, match="dtype"):
        cpu.local_gram_flow((good[0], "int8", *good[2:]), (1, 2, 3, 4), out.data_ptr(), window=3, **common)
    with pytest.raises(ValueError, match="shape"):
        cpu.local_gram_flow(good, (1, 1, 3, 4), out.data_ptr(), window=3, **common)
