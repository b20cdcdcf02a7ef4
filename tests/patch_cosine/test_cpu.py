"""The CPU kernels of patch cosine by themselves: instruction sets, panels, lines, threads, norms that overflow, bad calls."""

import pytest
import torch
from support import numerics
from support.numerics import features, relative_error, value_and_gradient
from support.pairs import every_pair

import lgf_kernels as lgf
from lgf_kernels.core import native

cpu, reason = native.load("cpu")
pytestmark = pytest.mark.skipif(cpu is None, reason=f"no native module: {reason}")
ISAS = cpu.isas() if cpu else []
loss = lgf.patch_cosine_loss


def against_reference(student, teachers, **options):
    gradient = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 6e-3, torch.float16: 7.5e-4}[student.dtype]
    options |= dict(backend="native", value=min(gradient, 1e-5), gradient=gradient, absolute=2e-7)
    numerics.against_reference(loss, student, teachers, **options)


@every_pair(
    dtype=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    teacher=(torch.bfloat16, torch.float16, torch.float32, torch.float64),
    shape=(((1, 1, 1, 1), (1,)), ((2, 3, 2, 7), (3, 17)), ((1, 5, 1, 33), (64, 15)), ((1, 18, 2, 3), (129,))),
    frames=(False, True),
)
def test_every_instruction_set(isa, dtype, teacher, shape, frames):
    """Lines of fewer tokens than a vector has lanes, and of more; channels in whole panels and parts of them."""
    (B, F, H, W), channels = shape
    student = features(B, F, H, W, sum(channels), dtype=dtype)
    K = F + 2 if frames else F
    teachers = [features(B, K, H, W, C, dtype=teacher) for C in channels]
    options = dict(frame_weight=torch.rand(F, K).where(torch.rand(F, K) > 0.3, 0)) if frames else {}
    against_reference(student, teachers, upstream=torch.tensor(float(B * F * H * W)), **options)


@pytest.mark.parametrize("frames", [False, True])
def test_norms_whose_squares_overflow(isa, frames):
    """They are summed in double precision: features of float32's whole range have a distance and a gradient."""
    options = dict(frame_weight=lgf.crepa_frame_weight(3)) if frames else {}
    student, teachers = features(2, 3, 1, 19, 70), [features(2, 3, 1, 19, C) for C in (40, 30)]
    student[0, 1], teachers[1][:, :, :, 3] = 1e25 * student[0, 1], 1e30 * teachers[1][:, :, :, 3]
    against_reference(student, teachers, **options)


@pytest.mark.parametrize("frames", [False, True])
def test_threads_change_no_bit(isa, frames):
    options = dict(frame_weight=lgf.crepa_frame_weight(9)) if frames else {}
    student, teachers = features(2, 9, 5, 13, 40), [features(2, 9, 5, 13, C) for C in (32, 8)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 64):
            torch.set_num_threads(count)
            results.append(value_and_gradient(loss, student, teachers, backend="native", **options))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_instruction_sets_agree():
    student, teacher, results = features(2, 3, 4, 5, 70), features(2, 3, 4, 5, 70), []
    best = cpu.build_info()["isa"]
    for isa in ISAS:
        cpu.set_isa(isa)
        results.append(value_and_gradient(loss, student, teacher, backend="native")[1])
    cpu.set_isa(best)
    assert all(relative_error(result, results[0].double()) < 1e-6 for result in results)


def test_bad_calls_raise():
    student, out = features(1, 2, 3, 4, 5), torch.empty(200)
    described, address = native.described(student), out.data_ptr()

    def call(student=described, teachers=(described,), shares=(1.0,), shape=(1, 2, 3, 4), frames=2, weights=None):
        arguments = (student, list(teachers), list(shares), shape, frames, weights, address, address, None)
        cpu.patch_cosine(*arguments, num_threads=1)

    call()
    for wrong, message in [
        (dict(shape=(1, 0, 3, 4)), "shape"),
        (dict(shares=(1.0, 1.0)), "shares"),
        (dict(frames=3), "teacher_frames"),
        (dict(frames=0, weights=address), "teacher_frames"),
        (dict(teachers=(described,) * 2, shares=(1.0,) * 2), "channels"),
        (dict(teachers=((address, "int8", *described[2:]),)), "dtype"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**wrong)
    with pytest.raises(ValueError, match="tokens"):
        cpu.patch_cosine_backward(address, "float32", 0, 5, address, address, num_threads=1)
