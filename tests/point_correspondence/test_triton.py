"""The Triton kernels of point correspondence in the interpreter: every row of the tables, every way to cut the work."""

import pytest
import torch
from support import numerics
from support.numerics import features, value_and_gradient
from support.pairs import every_value
from support.points import points

import lgf_kernels as lgf

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("with a GPU the kernels are not interpreted; tests/gpu runs them", allow_module_level=True)

import triton.language as tl

from lgf_kernels.core import triton_launch as launch
from lgf_kernels.point_correspondence import triton_configs as configs
from lgf_kernels.point_correspondence import triton_kernels

# Before `quick_interpreter` exchanges them.
SEARCH = {row for rows in (*configs.SEARCH.values(), *configs.SEARCH_IN_BLOCKS.values()) for row in rows}
COEFFICIENTS = {
    row for table in (configs.COEFFICIENTS, configs.WIDE_COEFFICIENTS) for rows in table.values() for row in rows
}
PRODUCTS = {row for table in (configs.PRODUCTS, configs.PRODUCTS_FOR_TOKENS) for rows in table.values() for row in rows}

pytestmark = pytest.mark.usefixtures("overflow_checks")


def once(rows):
    """The rows as the interpreter tells them apart: it knows no warps and no stages."""
    return sorted({row._replace(num_warps=4, num_stages=1) for row in rows})


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """So that small inputs have many."""
    monkeypatch.setattr(configs, "TILES", dict.fromkeys(configs.TILES, 32))


def against_reference(shape=(1, 2, 5, 9, 20), count=37, dtype=torch.float64, tolerance=1e-11, **options):
    B, T, H, W, _ = shape
    options |= dict(backend="triton", value=tolerance, gradient=tolerance, temperature=0.3)
    tracks = points(B, count, T, H, W)
    numerics.against_reference(lgf.point_correspondence_loss, features(*shape, dtype=dtype), *tracks, **options)


@every_value(row=once(SEARCH), window=(2, None))
def test_rows_of_search(monkeypatch, row, window):
    """Within a window of one block of channels, in the whole frame of two."""
    monkeypatch.setattr(configs, "search", lambda *_: [row])
    against_reference((1, 2, 9, 16, 20 if window else row.BLOCK_C + 12), row.TILE_Q + 5, window=window)


@pytest.mark.parametrize("row", once(COEFFICIENTS), ids=str)
def test_rows_of_coefficients(monkeypatch, row):
    monkeypatch.setattr(configs, "TILES", dict.fromkeys(configs.TILES, row.TILE_P))
    monkeypatch.setattr(configs, "coefficients", lambda *_: [row])
    against_reference((1, 2, 9, 16, row.BLOCK_C + 12))


@pytest.mark.parametrize("row", once(PRODUCTS), ids=str)
def test_rows_of_products(monkeypatch, row):
    monkeypatch.setattr(configs, "TILES", dict.fromkeys(configs.TILES, 2 * row.BLOCK_K))
    monkeypatch.setattr(configs, "products", lambda *_: [row])
    against_reference((1, 2, 5, 9, row.BLOCK_C + 12))


@pytest.mark.parametrize("frames", [2, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_frames_in_panels(monkeypatch, frames):
    """Five frames at most so many at a time, of two videos."""
    block = 64 * 64 * 8 + 45 * 20 * 8
    monkeypatch.setattr(triton_kernels, "scratch_bytes", lambda _: frames * block + 100)
    against_reference((2, 5, 5, 9, 20))


def test_panels_keep_to_the_budget(monkeypatch):
    """The coefficients and the gradient of tokens that are stored at a time take what LGF_SCRATCH_MIB says, or a frame."""
    taken = []
    monkeypatch.setattr(triton_kernels, "coefficients", lambda points, video, first, out: taken.append(out.nbytes))
    monkeypatch.setattr(triton_kernels, "add_products", lambda points, video, first, blocks, out, tokens: None)
    monkeypatch.setattr(triton_kernels, "project", lambda *_: None)
    monkeypatch.setattr(triton_kernels, "scatter", lambda *_: None)
    f, queries = features(1, 30, 10, 20, 8), torch.zeros(1, 600, 3)
    places, state = triton_kernels.forward(f, queries[:, :32], 0.05, None)
    del places, state
    for given, most in (("1", 2**20), ("3", 3 * 2**20)):
        monkeypatch.setenv("LGF_SCRATCH_MIB", given)
        taken.clear()
        places, state = torch.zeros(1, 600, 30, 2), torch.zeros(1, 600, 30, 1)
        triton_kernels.backward(places, f, queries, places, state, 0.05, None)
        assert len(taken) > 1 and max(taken) <= most and max(taken) > most / 3
    monkeypatch.setenv("LGF_SCRATCH_MIB", "much")
    with pytest.raises(ValueError, match="LGF_SCRATCH_MIB must be a number of mebibytes, such as 64"):
        triton_kernels.backward(places, f, queries, places, state, 0.05, None)


@pytest.mark.parametrize("processors", [4, 132])
def test_parts_of_a_sum_over_frames(monkeypatch, processors):
    """As many as fill a GPU, of frames that they do not divide."""
    monkeypatch.setattr(launch, "multiprocessors", lambda device: processors)
    against_reference((1, 5, 5, 9, 20))


def test_wide_indices(monkeypatch):
    """Frames of more than 2^31 elements are indexed by int64; here a small one is."""
    monkeypatch.setattr(launch, "index_type", lambda *tensors: tl.int64)
    against_reference(window=1)


@pytest.mark.parametrize("operand", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 17, 256, 2048])
def test_the_table_has_a_row_for_every_call(channels, operand):
    for architecture in (80, 86, 89, 90, 100, 120):
        assert configs.search(channels, operand, architecture)
        for either in (False, True):
            for row in configs.coefficients(channels, operand, either, architecture):
                assert configs.TILES[operand.itemsize] % row.TILE_P == 0
            for row in configs.products(channels, operand, either, architecture):
                assert configs.TILES[operand.itemsize] % row.BLOCK_K == 0


def test_points_on_one_token_are_summed_in_order():
    """Adding 100 gradients of one token in another order would change bits: the sum is that of a loop."""
    f, queries = features(1, 2, 4, 5, 16), torch.zeros(1, 100, 3)
    queries[..., 1:] = 2
    targets = features(1, 100, 2, 2)
    results = [
        value_and_gradient(lgf.point_correspondence_loss, f, queries, targets, backend="triton")[1] for _ in range(2)
    ]
    assert torch.equal(*results)
