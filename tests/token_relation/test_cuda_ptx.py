"""The CUDA kernels of token relations as nvcc compiles them, on the model of a GPU (tests/models/ptx), against the oracle."""

import re

import pytest
import torch
from models.ptx.mistakes import mistakes, must_be_noticed
from models.ptx.nvcc import CSRC, compiled, ptx
from models.ptx.parser import parse
from support.numerics import features, value_and_gradient

import lgf_kernels as lgf

from .cuda_inputs import TILE, against_reference, inputs

ARCHITECTURES = ("80", "90a")
HALF = torch.bfloat16
#: Shape of the student, channels of the teacher, options.
CASES = {
    "a tile and more": ((1, 1, TILE + 5, 72), 24, {"margin": 0.1, "c": torch.ones(1, 1)}),
    "small frames": ((1, 3, 30, 16), 8, {}),
    "stretches of pairs of a row": ((1, 2, TILE + 5, 136), 72, {"c": torch.ones(2, 2)}),
    "two products wide": ((1, 2, 20, 136), 8, {}),
    "many channels of the teacher": ((1, 2, 20, 8), 264, {}),
    "many channels of both": ((1, 2, 20, 264), 136, {}),
    "single tokens": ((1, 70, 1, 16), 8, {}),
    "a loss of each video": ((3, 2, 20, 16), 8, {"reduction": "none", "upstream": torch.tensor([512.0, -1e3, 256.0])}),
    "weights that are not symmetric": ((1, 4, 20, 16), 8, {"c": torch.arange(16.0).view(4, 4)}),
    "weights within frames": ((1, 5, 40, 24), 16, {"c": lgf.videorepa_pair_weight(5, "spatial"), "reduction": "sum"}),
    "squares": ((1, 2, 40, 24), 16, {"distance": "l2"}),
    "squares of clamped products": (
        (1, 2, 40, 24),
        16,
        {"distance": "l2", "negatives": "clamp", "similarity": "dot", "upstream": torch.tensor(1.0)},
    ),
    "weights between frames": ((1, 5, 40, 24), 16, {"c": lgf.videorepa_pair_weight(5, "temporal"), "margin": 0.05}),
}
#: What continuous integration runs. For "80" there are those of Local Gram Flow, whose code is the same for both.
CONTINUOUS = [("90a", name) for name in CASES] + [("80", "a tile and more")]


@pytest.mark.parametrize(
    "architecture, case",
    [
        pytest.param(architecture, case, marks=() if (architecture, case) in CONTINUOUS else pytest.mark.slow)
        for architecture in ARCHITECTURES
        for case in CASES
    ],
)
def test_tensor_cores(nvcc_model, architecture, case):
    shape, teacher_channels, options = CASES[case]
    launcher = nvcc_model(architecture)
    against_reference(*inputs(shape, teacher_channels, HALF), **options)
    by = "Warps" if architecture == "80" else "Warpgroups"
    width = 2 if shape[-1] > TILE else 1
    assert {f"Distances<{by}<BFloat16> >", f"TileProducts<{by}<BFloat16>, {width}>"} < set(launcher.kernels)


@pytest.mark.slow
@pytest.mark.parametrize("shape, teacher_channels", [((1, 2, TILE + 5, 72), 24), ((2, 3, 37, 264), 64)], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float16(nvcc_model, architecture, shape, teacher_channels):
    nvcc_model(architecture)
    against_reference(*inputs(shape, teacher_channels, torch.float16))


@pytest.mark.parametrize(
    "dtype", [torch.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float64, HALF))], ids=str
)
def test_plain_kernels(nvcc_model, dtype):
    launcher = nvcc_model("80")
    against_reference(*inputs((1, 2, 37, 17), 9, dtype))
    assert any("Plain" in kernel for kernel in launcher.kernels)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_panels(nvcc_model, architecture, monkeypatch):
    monkeypatch.setenv("LGF_SCRATCH_MIB", "1")
    launcher = nvcc_model(architecture)
    against_reference(*inputs((1, 5, 290, 136), 40, HALF))
    assert sum("Distances" in kernel for kernel in launcher.kernels) > 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equal_features(nvcc_model, architecture):
    nvcc_model(architecture)
    student = features(1, 2, 30, 16, dtype=HALF)
    value, gradient = value_and_gradient(
        lgf.token_relation_loss, student, student.clone(), pair_weight=torch.ones(2, 2), backend="native"
    )
    assert value == 0 and not gradient.any()


#: 1 << 62, swizzled rows of 128 bytes, and 64 << 32, 1024 bytes from eight rows to the next; with 1 and 512 << 16.
ALONG, DOWN = 4611686293305360384, 4611686293338849280
MISTAKES = {
    "no barriers": ("80", r"bar\.sync", "// bar.sync", "race"),
    "no barriers ": ("90a", r"bar\.sync", "// bar.sync", "race"),
    "a chunk is not waited for": ("90a", r"cp\.async\.wait_group 4", "cp.async.wait_group 5", "copy is under way"),
    "no fence": ("90a", r"wgmma\.fence", "// wgmma.fence", "no fence .wgmma"),
    "no commit": ("90a", r"wgmma\.commit_group", "// wgmma.commit_group", "not committed"),
    "no wait": ("90a", r"wgmma\.wait_group", "// wgmma.wait_group", "have not waited for"),
    "copies are not made known": ("90a", r"fence\.proxy\.async", "// fence.proxy.async", "no fence .fence.proxy"),
}
MORE = {
    "a chunk is not waited for ": ("80", r"cp\.async\.wait_group 0", "cp.async.wait_group 1", "copy is under way"),
    "pieces are not exchanged": ("80", r"xor\.b32", "or.b32", None),
    "pieces are not exchanged ": ("90a", r"xor\.b32", "or.b32", None),
    "not transposed": ("80", r"x4\.trans", "x4", "error"),
    "rows of 64 bytes": ("90a", str(ALONG), str(ALONG ^ 3 << 62), None),
    "rows of 64 bytes, down": ("90a", str(DOWN), str(DOWN ^ 3 << 62), None),
    "another base": ("90a", str(ALONG), str(ALONG | 1 << 49), "does not know `descriptor"),
    "another stride": ("90a", str(ALONG), str(ALONG ^ 96 << 32), None),
    "another stride, down": ("90a", str(DOWN), str(DOWN ^ 96 << 32), None),
    "another leading offset": ("90a", str(DOWN), str(DOWN ^ 768 << 16), None),
    "a is transposed": ("90a", "p, 1, 1, 0, 1", "p, 1, 1, 1, 1", None),
    "a is not transposed": ("90a", "p, 1, 1, 1, 1", "p, 1, 1, 0, 1", None),
    "b is transposed": ("90a", "p, 1, 1, 0, 0", "p, 1, 1, 0, 1", None),
    "b is not transposed": ("90a", "p, 1, 1, ([01]), 1", r"p, 1, 1, \1, 0", None),
    "sums are started anew": ("90a", r"setp\.eq\.u32 p, 0, 0", "setp.eq.u32 p, 0, 1", "error"),
}


@mistakes(MISTAKES, MORE)
def test_mistakes_are_noticed(nvcc_model, mistake):
    # In more than one tile, unless the model itself says what is wrong.
    shape, teacher_channels = ((1, 2, 40, 72), 264) if mistake in MISTAKES.values() else ((1, 3, TILE + 5, 136), 72)
    must_be_noticed(nvcc_model, mistake, lambda: against_reference(*inputs(shape, teacher_channels, HALF)))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_kernel_alone_is_compiled_as_with_all_others(architecture):
    by = "Warps" if architecture == "80" else "Warpgroups"
    alone = compiled(f"lgf::cuda::Distances<lgf::cuda::{by}<lgf::BFloat16> >", architecture)
    whole = ptx(CSRC / "token_relation" / "kernels.cu", architecture)
    (entry,) = [line.split(".entry ")[1].rstrip("(") for line in alone.splitlines() if ".entry" in line]
    assert instructions(parse(alone)) == instructions(parse(whole, entry))


def instructions(program) -> list[str]:
    """Return a program's instructions without the number of the kernel in the names of labels."""
    return [re.sub(r"L__BB\d+", "L__BB", str(op)) for block in program.blocks for op in block]
