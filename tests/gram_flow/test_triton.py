"""The Triton kernels of Local Gram Flow in the interpreter: rows of the forward's table, widths of indices, extremes."""

import pytest
import torch
from support import numerics
from support.numerics import assert_close, features, value_and_gradient

import lgf_kernels as lgf
from lgf_kernels.gram_flow import triton_configs as configs
from lgf_kernels.gram_flow.options import LgfOptions

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("with a GPU the kernels are not interpreted; tests/gpu runs them", allow_module_level=True)

from lgf_kernels.core import triton_launch as launch
from lgf_kernels.gram_flow import triton_loss as lgf_kl

pytestmark = pytest.mark.usefixtures("overflow_checks")

# Before `quick_interpreter` exchanges them.
TABLES = {name: dict(getattr(configs, name)) for name in ("FORWARD", "BACKWARD")}
FORWARD = [row for rows in (*configs.FORWARD.values(), *configs.FORWARD_ONE_GRAM.values()) for row in rows]


@pytest.fixture
def real_tables(monkeypatch):
    for name, table in TABLES.items():
        monkeypatch.setattr(configs, name, table)
    for choice in (configs.forward, configs.backward):
        choice.cache_clear()
    yield
    for choice in (configs.forward, configs.backward):
        choice.cache_clear()


def once(rows):
    """Return the rows that differ in the interpreter, which has no warps, with small blocks, so that there are several."""
    return sorted({row._replace(BLOCK_C=16, num_warps=4, num_stages=1) for row in rows})


def against_reference(shape=(1, 3, 9, 9, 20), teacher_channels=(7, 20), **options):
    teachers = [features(*shape[:4], channels) for channels in teacher_channels]
    numerics.against_reference(lgf.lgf_kl_loss, features(*shape), teachers, backend="triton", **options)


@pytest.mark.parametrize("row", once(FORWARD), ids=str)
def test_forward_rows(monkeypatch, row):
    monkeypatch.setattr(configs, "forward", lambda *_: [row])
    against_reference()


@pytest.mark.parametrize("window", [3, 11, 15])
def test_tiles_are_cut_to_the_window(real_tables, window):
    against_reference((1, 2, 5, 9, 20), window=window)


@pytest.mark.parametrize("window", range(1, 16, 2))
@pytest.mark.parametrize("operand", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
def test_the_table_has_a_row_for_every_call(real_tables, architecture, operand, window):
    for channels in (1, 17, 256, 2048):
        forward = configs.forward(window, channels, 2, operand, architecture)
        forward += configs.forward(window, channels, 0, operand, architecture)
        backward = configs.backward(window, channels, operand, architecture)
        for row in forward + backward:
            assert row.TILE_H * row.TILE_W >= 16 <= row.BLOCK_C, "tensor cores multiply blocks of 16 at least"
            assert row.TILE_H * row.TILE_W * configs.halo_size((row.TILE_H, row.TILE_W), window) <= 64 * 256


def test_wide_indices(monkeypatch):
    """Frames of more than 2^31 elements are indexed by int64; here a small one is."""
    triton_language = pytest.importorskip("triton.language")
    monkeypatch.setattr(launch, "index_type", lambda *tensors: triton_language.int64)
    against_reference(direction="both")


def test_index_type_follows_the_strides():
    # as_strided only makes the views: nothing reads them.
    narrow, wide = torch.empty(1, 2, 4, 5, 6), torch.empty_strided((1, 2, 2, 1, 1), (1, 1, 2**31, 1, 1), device="meta")
    assert str(launch.index_type(narrow)) == "int32"
    assert str(launch.index_type(narrow, wide)) == "int64"


@pytest.mark.parametrize("number", [0.1, 1 / 0.07, 1e-9, 3.0])
def test_numbers_keep_their_digits(number):
    high, low = launch.exact(number)
    assert high == torch.tensor(number, dtype=torch.float32).item()
    assert abs(high + torch.tensor(low, dtype=torch.float32).double().item() - number) <= 1e-14 * number


def test_three_products_have_the_accuracy_of_float32():
    """What tf32x3 does: each factor as a sum of two of tf32, and their product without that of the two small parts."""

    def tf32(x):
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    a, b = torch.randn(64, 256), torch.randn(256, 64)
    a_high, b_high = tf32(a), tf32(b)
    a_low, b_low = tf32(a - a_high), tf32(b - b_high)
    products = (a_high.double() @ b_high.double()) + a_high.double() @ b_low.double() + a_low.double() @ b_high.double()
    size = a.double().abs() @ b.double().abs()
    assert ((products - a.double() @ b.double()).abs() / size).max() < 3e-7


def test_the_residual_is_lean():
    """For a bfloat16 student of 256 channels, at most 35 % of it."""
    student = torch.empty(1, 49, 64, 64, 256, dtype=torch.bfloat16, device="meta")
    assert sum(lgf_kl.Residual.sizes(student, LgfOptions())) <= 0.35 * student.numel() * student.itemsize


def test_float16_keeps_small_gradients():
    """Gradients of the logits can lie below what float16 can hold; those of the features need not."""
    student, teacher = features(1, 2, 8, 8, 16, dtype=torch.float16), features(1, 2, 8, 8, 16)
    student = (student * 2**-10).half()
    options = dict(reduction="sum", temperature=100.0)
    _, ours = value_and_gradient(lgf.lgf_kl_loss, student, teacher, backend="triton", **options)
    _, truth = value_and_gradient(lgf.lgf_kl_loss, student.double(), teacher.double(), backend="reference", **options)
    assert_close(ours, truth, 1e-3)


@pytest.mark.parametrize("divergence", ["kl", "l2"])
def test_gradient_of_a_divergence_that_is_not_finite(divergence):
    """Finite features whose product overflows: softmax alone would make a finite gradient of the infinite loss."""
    student = torch.zeros(1, 2, 5, 9, 1)
    student[0, 0, 2, 4], student[0, 1, 2, 5] = 1e20, -1e20
    options = dict(window=3, similarity="dot", divergence=divergence, reduction="none", backend="triton")
    tokens, gradient = value_and_gradient(lgf.lgf_kl_loss, student, torch.zeros_like(student), **options)
    assert tokens.isnan().nonzero().tolist() == [[0, 0, 2, 4]]
    assert gradient[0, 0, 2, 4].isnan().all()
