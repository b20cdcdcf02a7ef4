"""The choice of a backend: order, overrides, and what is said of one that cannot."""

import importlib
import subprocess
import sys

import pytest
import torch
from helpers import backends_of, features

import lgf_kernels as lgf

table = importlib.import_module("lgf_kernels.backends")


@pytest.fixture
def run_by(monkeypatch):
    """A function that says which backend a call ran on."""
    seen = []
    implementation = table.implementation

    def watched(backend, operator):
        seen.append(backend)
        return implementation(backend, operator)

    for operator in ("lgf_kl", "local_gram_flow", "token_relation"):
        monkeypatch.setattr(importlib.import_module(f"lgf_kernels.ops.{operator}"), "implementation", watched)

    def run(**options):
        seen.clear()
        lgf.lgf_kl_loss(features(1, 2, 3, 4, 5), features(1, 2, 3, 4, 5), **options)
        return seen[0] if seen else "reference"

    return run


def test_the_first_that_can(run_by):
    assert run_by() == backends_of("lgf_kl")[0]


def test_argument_before_use_backend_before_environment(run_by, monkeypatch):
    monkeypatch.setenv("LGF_BACKEND", "reference")
    assert run_by() == "reference"
    with lgf.use_backend("portable"):
        assert run_by() == "portable"
        assert run_by(backend="reference") == "reference"
        with lgf.use_backend(None):
            assert run_by() == "reference"
        assert run_by() == "portable"
    assert run_by() == "reference"


def test_use_backend_as_a_plain_call(run_by):
    try:
        lgf.use_backend("portable")
        assert run_by() == "portable"
    finally:
        lgf.use_backend(None)
    assert run_by() == backends_of("lgf_kl")[0]


def test_use_backend_ends_with_an_error(run_by):
    with pytest.raises(KeyError), lgf.use_backend("reference"):
        raise KeyError
    assert run_by() == backends_of("lgf_kl")[0]


def test_environment_with_an_unknown_name(monkeypatch):
    monkeypatch.setenv("LGF_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"LGF_BACKEND must be one of .*'fast'"):
        lgf.local_gram_flow(features(1, 2, 3, 4, 5))


def test_rows_are_for_people():
    rows = lgf.backends()
    assert [row.name for row in rows] == ["native", "triton", "portable", "reference"]
    for row in rows:
        assert isinstance(row.available, bool) and row.reason
    assert rows[2].available and rows[3].available


def test_one_that_cannot_says_why_and_is_a_value_and_runtime_error():
    with pytest.raises(lgf.BackendUnavailableError, match="meta tensors") as caught:
        lgf.local_gram_flow(torch.empty(1, 2, 3, 4, 5, device="meta"), backend="native")
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, RuntimeError)


def test_triton_says_why_not(monkeypatch):
    from lgf_kernels import triton_kernels

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(lgf.BackendUnavailableError, match=r"on the CPU only interpreted, .*TRITON_INTERPRET=1"):
        lgf.local_gram_flow(features(1, 2, 3, 4, 5), backend="triton")
    assert "meta devices" in triton_kernels.why_not("lgf_kl", "meta")
    assert "no Triton kernel" in triton_kernels.why_not("patch_cosine", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton_kernels.why_not("lgf_kl", "cuda") == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert triton_kernels.why_not("lgf_kl", "cuda:1") == "Triton kernels need sm_80 or newer, this is sm_75"


def test_native_on_cuda_says_why_not(monkeypatch):
    from lgf_kernels import native

    monkeypatch.setattr(native.importlib, "import_module", lambda name: None)
    native.load.cache_clear()
    try:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert native.why_not("lgf_kl", "cuda") == "torch sees no CUDA device"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert native.why_not("lgf_kl", "cuda:1") == "native CUDA kernels need sm_80 or newer, this is sm_75"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        assert native.why_not("lgf_kl", "cuda") is None
        assert native.why_not("token_relation", "cuda") is None
        assert "no native kernel" in native.why_not("patch_cosine", "cuda")
    finally:
        native.load.cache_clear()


def test_native_on_cuda_is_available_but_not_chosen_by_itself(monkeypatch):
    """Until its kernels have been measured against the others."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(table, "PREDICATES", dict.fromkeys(table.PREDICATES, lambda request: None))
    cuda = table.Request("lgf_kl", "cuda")
    assert table.able(cuda)[0] == "native"
    assert next(name for name in table.able(cuda) if table.by_itself(name, cuda)) == "triton"
    reason = lgf.backends()[0].reason
    assert "lgf_kl is not chosen by itself for cuda tensors" in reason
    assert "not been measured yet (counted 279 us against Triton's 484 us" in reason
    assert table.by_itself("native", table.Request("lgf_kl", "cpu"))


def test_what_is_said_of_the_counts_is_what_they_say():
    """The numbers in the reason come from `make kernel-counts` and nowhere else."""
    counts = pytest.importorskip("kernel_counts", reason="it counts Triton's kernels too")
    from lgf_kernels import native

    shape, gpu = counts.Shape(1, 49, 64, 64, 256, teachers=2), counts.H200
    ours, theirs = (
        round(sum(work.estimate(gpu)[0] for work in kernels(shape, gpu)) * 1e6)
        for kernels in (counts.cuda, counts.triton)
    )
    assert f"counted {ours} us against Triton's {theirs} us" in native.COUNTED["lgf_kl"]


def test_a_cuda_module_that_was_not_built_says_what_it_takes(monkeypatch):
    from lgf_kernels import native

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(native.importlib, "import_module", missing)
    native.load.cache_clear()
    try:
        assert "nvcc" in native.load("cuda")[1] and "LGF_CUDA=on" in native.load("cuda")[1]
        assert "C++17" in native.load("cpu")[1] and "LGF_NATIVE=on" in native.load("cpu")[1]
    finally:
        native.load.cache_clear()


def test_triton_that_cannot_be_imported_keeps_its_reason(monkeypatch):
    from lgf_kernels import triton_kernels

    def broken(name):
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_kernels.importlib, "import_module", broken)
    triton_kernels.import_failure.cache_clear()
    try:
        assert "libcuda.so.1" in triton_kernels.why_not("lgf_kl", "cpu")
    finally:
        triton_kernels.import_failure.cache_clear()


def test_interpreted_kernels_are_never_chosen_by_themselves(monkeypatch):
    """Somebody who debugs Triton kernels of their own with the interpreter must not get ours interpreted."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    native = dict(table.PREDICATES, native=lambda request: "not built")
    monkeypatch.setattr(table, "PREDICATES", native)
    assert table.resolve("lgf_kl", torch.empty(1), None, "f") == "portable"


def test_import_is_light():
    """`import lgf_kernels` imports neither torch's compiler and Triton nor the native modules, the trainer or the demo."""
    heavy = [
        "torch._dynamo",
        "triton",
        "lgf_kernels._cpu",
        "lgf_kernels._cuda",
        "lgf_kernels.triton_kernels.launch",
        "lgf_demo",
        "lgf_bench",
        "lgf_trainer",
        "diffusers",
        "matplotlib",
    ]
    code = f"import sys, lgf_kernels; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_module_that_fails_to_load_keeps_its_reason(monkeypatch):
    from lgf_kernels import native

    def broken(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(native.importlib, "import_module", broken)
    native.load.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"libgomp\.so\.1"):
            lgf.local_gram_flow(features(1, 2, 3, 4, 5), backend="native")
        assert "libgomp" in lgf.backends()[0].reason
    finally:
        native.load.cache_clear()
