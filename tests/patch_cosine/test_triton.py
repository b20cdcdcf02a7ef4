"""The Triton kernel of patch cosine in the interpreter: every row of the table, cuts, indices, frames that are left out."""

import pytest
import torch
from support import numerics
from support.numerics import features
from support.pairs import every_value

import lgf_kernels as lgf

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("with a GPU the kernels are not interpreted; tests/gpu runs them", allow_module_level=True)

import triton.language as tl

from lgf_kernels.core import triton_launch as launch
from lgf_kernels.patch_cosine import triton_configs as configs
from lgf_kernels.patch_cosine import triton_kernels

# Before `quick_interpreter` exchanges them; as the interpreter tells them apart: it knows no warps and no stages.
TOKENS = sorted({row._replace(num_warps=4, num_stages=1) for rows in configs.TOKENS.values() for row in rows})

pytestmark = pytest.mark.usefixtures("overflow_checks")


def against_reference(channels, shape=(1, 3, 3, 5), dtype=torch.float64, tolerance=1e-12, frames=False, **options):
    student = features(*shape, sum(channels), dtype=dtype)
    teachers = [features(*shape, C, dtype=dtype) for C in channels]
    options |= dict(frame_weight=lgf.crepa_frame_weight(shape[1])) if frames else {}
    options |= dict(backend="triton", value=tolerance, gradient=tolerance, absolute=1e-14)
    numerics.against_reference(lgf.patch_cosine_loss, student, teachers, **options)


@every_value(row=TOKENS, frames=(False, True))
def test_rows_of_the_table(monkeypatch, row, frames):
    """Of more channels than a block and of fewer, of a frame that ends within a block of tokens."""
    monkeypatch.setattr(configs, "tokens", lambda *_: [row])
    against_reference((row.BLOCK_C + 12, row.BLOCK_C - 4), (1, 2, 2 * row.ROWS - 1), frames=frames)


@pytest.mark.parametrize("channels", [(16, 32), (1,), (17, 16, 3), (32, 5)], ids=str)
def test_channels_that_16_divides_and_others(channels):
    for frames in (False, True):
        against_reference(channels, (1, 2, 2, 3), frames=frames)


@pytest.mark.parametrize("frames", [False, True])
def test_wide_indices(monkeypatch, frames):
    """Frames of more than 2^31 elements are indexed by int64; here a small one is."""
    monkeypatch.setattr(launch, "index_type", lambda *tensors: tl.int64)
    against_reference((9, 4), frames=frames)


def test_only_frames_with_a_weight_are_visited():
    """From the first to the last of each row; of a row of zeros none."""
    weight = torch.tensor([[0, 2, 0, 3, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    bounds = triton_kernels.bounds_of(weight)
    assert bounds.is_contiguous()
    assert [list(range(*row))[:4] for row in bounds.tolist()] == [[1, 2, 3], [], [0], [4]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_blocks_are_no_wider_than_the_widest_teacher(dtype):
    for channels, most in (((1,), 16), ((17, 20), 32), ((5, 2048), 512)):
        assert all(row.BLOCK_C <= most for row in configs.tokens(channels, dtype))
