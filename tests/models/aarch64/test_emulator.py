"""The AArch64 emulator for tests of the CPU kernels: what it runs, how it fails, and that all families use it."""

import ast
import platform

import pytest
import torch
from support.numerics import features

from lgf_kernels.core import native

from . import build
from .emulator import launched_on

ELF_AARCH64 = 183
FAMILIES = sorted(path.parent.name for path in (build.ROOT / "csrc" / "cpu").glob("*/kernels.cpp"))
COMMON = dict(similarity="dot", backward=False, num_threads=1)


@pytest.fixture
def called(emulated, monkeypatch):
    """The emulated functions, which know the memory of tensors."""
    launched_on(emulated, monkeypatch)
    return emulated


def logits(called, tensor, window=1, **changes):
    out = torch.empty(1, 1, 3, 4, window**2)
    described = native.described(tensor)
    called.local_gram_flow(
        changes.get("described", described),
        (1, 2, 3, 4),
        out.data_ptr(),
        window=window,
        **COMMON | changes.get("options", {}),
    )
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_kernels_is_tested_on_aarch64(family):
    """By tests that take the fixture `isa` of all families, which a fixture of their own would hide."""
    tree = ast.parse((build.ROOT / "tests" / family / "test_cpu.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert "isa" not in [function.name for function in functions]
    assert any(argument.arg == "isa" for function in functions for argument in function.args.args)


def test_kernels_are_compiled_as_the_module_is():
    assert {"-O3", "-ffp-contract=fast"} <= set(build.flags_of_kernels())


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    reason = build.unsupported_reason()
    assert "no aarch64-linux-gnu-g++ and no qemu-aarch64-static" in reason and "qemu-user-static" in reason
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert build.unsupported_reason() == "this machine runs the AArch64 kernels itself"


@pytest.mark.slow
def test_the_program_is_one_for_aarch64(emulated):
    assert int.from_bytes(emulated.program.read_bytes()[18:20], "little") == ELF_AARCH64


@pytest.mark.slow
def test_a_bad_argument_is_refused_as_by_the_module(called):
    with pytest.raises(ValueError, match="window: expected an odd size"):
        logits(called, features(1, 2, 3, 4, 5), window=2)
    with pytest.raises(ValueError, match="similarity: expected 'cosine' or 'dot'"):
        logits(called, features(1, 2, 3, 4, 5), options={"similarity": "angle"})


@pytest.mark.slow
def test_a_call_of_another_kind_is_an_error(called):
    tensor = features(1, 2, 3, 4, 5)
    with pytest.raises(RuntimeError, match="local_gram_flow: a value of another type"):
        logits(called, tensor, options={"similarity": 1.5})
    address, *others = native.described(tensor)
    with pytest.raises(RuntimeError, match="an address that no tensor has"):
        logits(called, tensor, described=(address + 2**40, *others))
    with pytest.raises(RuntimeError, match="no_such_function"):
        called.no_such_function()


@pytest.mark.slow
def test_an_access_beyond_a_tensor_ends_the_process_and_not_the_tests(called):
    tensor = features(1, 2, 3, 4, 5)
    address, dtype, channels, strides = native.described(tensor)
    with pytest.raises(RuntimeError, match="ended the process"):
        logits(called, tensor, described=(address, dtype, channels + 1, strides))
    torch.testing.assert_close(logits(called, tensor)[..., 0], (tensor[:, 1:] * tensor[:, :-1]).sum(-1))


@pytest.mark.slow
def test_a_tensor_that_begins_inside_its_memory(called):
    whole = features(3, 2, 3, 4, 7)
    tensor = whole[1:2, ..., 2:]
    torch.testing.assert_close(logits(called, tensor)[..., 0], (tensor[:, 1:] * tensor[:, :-1]).sum(-1))
