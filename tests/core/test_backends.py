"""Choice of a backend: order, overrides, and the reasons of a backend that cannot run a call."""

import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.numerics import backends_of, features

import lgf_kernels as lgf
from lgf_kernels import doctor
from lgf_kernels.core import gpu, native, registry, verify
from lgf_kernels.core.registry import Call
from lgf_kernels.gram_flow import operators


@pytest.fixture
def run_by(monkeypatch):
    """A function that returns the backend that a call ran on."""
    seen = []
    real = registry.implementation

    def watched(operator, backend, device_type):
        seen.append(backend)
        return real(operator, backend, device_type)

    monkeypatch.setattr(operators, "implementation", watched)

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


def test_use_backend_with_an_unknown_name():
    with pytest.raises(ValueError, match=r"use_backend.*'fast'"):
        lgf.use_backend("fast")


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
    def reason(device):
        return registry.unsupported_reason("triton", Call("lgf_kl", device))

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(lgf.BackendUnavailableError, match=r"on the CPU only interpreted, .*TRITON_INTERPRET=1"):
        lgf.local_gram_flow(features(1, 2, 3, 4, 5), backend="triton")
    assert "meta devices" in reason("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reason("cuda") == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert reason("cuda:1") == "Triton kernels need sm_80 or newer, this is sm_75"


@pytest.fixture
def hopper(monkeypatch):
    """torch sees a Hopper, and the CUDA module was built; returns it, and the devices on which it was probed."""
    probed = []
    about = {"interface": native.INTERFACE}
    module = SimpleNamespace(__name__="lgf_kernels._cuda", probe=probed.append, build_info=lambda: about)
    monkeypatch.setattr(native.importlib, "import_module", lambda name: module)
    native.load.cache_clear(), native.loading_failure.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield module, probed
    native.load.cache_clear(), native.loading_failure.cache_clear()


def test_native_on_cuda_says_why_not(monkeypatch, hopper):
    def reason(device="cuda", operator="lgf_kl", **facts):
        return registry.unsupported_reason("native", Call(operator, device, facts=tuple(facts.items())))

    assert reason() is None and reason(operator="token_relation") is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert reason("cuda:1") == "native CUDA kernels need sm_80 or newer, this is sm_75"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reason() == "torch sees no CUDA device"


def test_a_module_that_the_driver_cannot_load_is_a_reason(monkeypatch, hopper):
    """As one that nvcc 13 built is to a driver for CUDA 12, or one without code for the device."""
    module, probed = hopper
    calls = [Call(operator, "cuda:1") for operator in ("lgf_kl", "local_gram_flow", "token_relation")]
    assert [registry.unsupported_reason("native", call) for call in calls] == [None] * 3 and probed == [1]

    def probe(device):
        raise RuntimeError("CUDA driver version is insufficient (the driver supports CUDA 12.4)")

    module.probe = probe
    reason = registry.unsupported_reason("native", Call("lgf_kl", "cuda"))
    assert reason == (
        "the kernels of lgf_kernels._cuda cannot be loaded: "
        "CUDA driver version is insufficient (the driver supports CUDA 12.4)"
    )
    assert "native" not in {row.name for row in registry.able(Call("token_relation", "cuda"))}
    assert reason in lgf.backends()[0].reason
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert doctor._module("cuda") == {"available": "no", "reason": reason}
    with pytest.raises(lgf.BackendUnavailableError, match="driver version is insufficient"):
        registry.resolve(Call("lgf_kl", "cuda"), "native", "lgf_kl_loss")


def test_an_operator_without_a_kernel_says_so():
    assert (
        registry.unsupported_reason("native", Call("patch_cosine", "cuda"))
        == "patch_cosine has no native kernel for cuda tensors"
    )


def test_kernels_on_cuda_are_chosen_only_where_they_have_answered_right(hopper, monkeypatch):
    cuda = Call("lgf_kl", "cuda")
    assert next(registry.able(cuda)).name == "native"
    verdicts = {"native": (False, "wrong", float("inf")), "triton": (True, "right", 1.0)}
    monkeypatch.setattr(registry.verify, "verdict", lambda call, name, *cases: verify.Verdict(*verdicts[name]))
    right = [row.name for row in registry.able(cuda) if verdicts.get(row.name, (True,))[0]]
    assert registry.resolve(cuda, None, "f") == right[0] in ("triton", "portable")
    verdicts["native"] = (True, "right", 0.5)
    assert registry.resolve(cuda, None, "f") == "native"
    reason = lgf.backends()[0].reason
    assert "chosen where it has answered right: `lgf verify` asks it now" in reason
    assert "lgf_kl on cuda (at most 15 teachers; tensor cores for bfloat16 and float16 alone)" in reason


def test_a_call_that_a_backend_cannot_run_goes_to_the_next(monkeypatch):
    """On a stand-in for CUDA: its backend is first, for CPU tensors, and takes no more teachers than the real one."""
    ran = []

    def stand_in(call):
        return operators.cuda_unsupported_reason(call)

    monkeypatch.setattr(native, "unsupported_reason", lambda call: None)
    row = registry.Backend("native", "portable", stand_in)
    others = [row for row in registry.OPERATORS["lgf_kl"].backends if row.name != "native"]
    kept = registry.OPERATORS["lgf_kl"]
    monkeypatch.setitem(registry.OPERATORS, "lgf_kl", kept._replace(backends=(row, *others)))
    real = registry.implementation
    monkeypatch.setattr(
        operators, "implementation", lambda op, name, device: ran.append(name) or real(op, name, device)
    )
    student = features(1, 2, 3, 4, 5)
    for count, expected in ((15, "native"), (16, "portable")):
        lgf.lgf_kl_loss(student, [student] * count)
        assert ran[-1] == expected
    with pytest.raises(lgf.BackendUnavailableError, match=r"at most 15 teachers, and there are 16.*'portable'"):
        lgf.lgf_kl_loss(student, [student] * 16, backend="native")
    compiled = torch.compile(lambda s: lgf.lgf_kl_loss(s, [student] * 16), fullgraph=True, backend="aot_eager")
    compiled(student)
    assert ran[-1] == "portable"


def test_a_backend_sees_type_and_shape(monkeypatch):
    """One that runs no float64 and no window above 3, as kernels may."""

    def choosy(call):
        assert call.shape == (1, 2, 3, 4, 5)
        if call.dtype == torch.float64:
            return "no float64"
        return "no window above 3" if call.fact("window") > 3 else None

    kept = registry.OPERATORS["local_gram_flow"]
    rows = (registry.Backend("native", "portable", choosy), registry.PORTABLE, registry.REFERENCE)
    monkeypatch.setitem(registry.OPERATORS, "local_gram_flow", kept._replace(backends=rows))
    lgf.local_gram_flow(features(1, 2, 3, 4, 5), window=3, backend="native")
    for options, why in ((dict(window=5), "no window above 3"), (dict(window=3, dtype=torch.float64), "no float64")):
        dtype = options.pop("dtype", torch.float32)
        f = features(1, 2, 3, 4, 5, dtype=dtype)
        lgf.local_gram_flow(f, **options)
        with pytest.raises(lgf.BackendUnavailableError, match=why):
            lgf.local_gram_flow(f, backend="native", **options)


def test_a_cuda_module_that_was_not_built_says_what_it_takes(monkeypatch):
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
    def broken(name):
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu.importlib, "import_module", broken)
    gpu.triton_import_failure.cache_clear()
    try:
        assert "libcuda.so.1" in registry.unsupported_reason("triton", Call("lgf_kl", "cpu"))
    finally:
        gpu.triton_import_failure.cache_clear()


def test_interpreted_kernels_are_never_chosen_by_themselves(monkeypatch):
    """Somebody who debugs Triton kernels of their own with the interpreter must not get ours interpreted."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kept = registry.OPERATORS["lgf_kl"]
    rows = tuple(row for row in kept.backends if row.name != "native")
    monkeypatch.setitem(registry.OPERATORS, "lgf_kl", kept._replace(backends=rows))
    assert registry.resolve(registry.call_of("lgf_kl", torch.empty(1)), None, "f") == "portable"


def test_import_is_light():
    """`import lgf_kernels` imports neither torch's compiler and Triton nor the native modules, the trainer or the demo."""
    heavy = [
        "torch._dynamo",
        "triton",
        "lgf_kernels._cpu",
        "lgf_kernels._cuda",
        "lgf_kernels.core.triton_launch",
        "lgf_demo",
        "lgf_bench",
        "lgf_trainer",
        "diffusers",
        "matplotlib",
    ]
    code = f"import sys, lgf_kernels; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_module_that_fails_to_load_keeps_its_reason(monkeypatch):
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


@pytest.mark.parametrize("about", [{}, {"interface": native.INTERFACE - 1}], ids=str)
def test_a_module_from_other_sources_is_passed_over_and_says_the_way_out(monkeypatch, about):
    older = SimpleNamespace(
        __name__="lgf_kernels._cpu", local_gram_flow=print, gram_backward=print, build_info=lambda: about
    )
    load = native.importlib.import_module
    swapped = {older.__name__: older}
    monkeypatch.setattr(native.importlib, "import_module", lambda name, *of: swapped.get(name) or load(name, *of))
    native.load.cache_clear()
    try:
        f = features(1, 2, 3, 4, 5)
        assert "native" not in registry.names_of_able("local_gram_flow")
        reason = r"_cpu was built from other sources .* build it again: .*LGF_NATIVE=on"
        with pytest.raises(ValueError, match=reason):
            lgf.local_gram_flow(f, backend="native")
        assert lgf.local_gram_flow(f).shape == (1, 1, 3, 4, 49)
        found = doctor.examine()["native modules"]["_cpu"]
        assert found["available"] == "no" and re.search(reason, found["reason"])
    finally:
        native.load.cache_clear()


def test_the_modules_built_here_are_of_these_sources():
    source = Path(native.__file__).parents[2] / "csrc" / "common" / "interface.h"
    assert f"kInterface = {native.INTERFACE};" in source.read_text()


@pytest.mark.parametrize("value", ["true", "2"])
def test_a_wrong_value_of_lgf_autotune_is_refused(monkeypatch, value):
    triton_launch = pytest.importorskip("lgf_kernels.core.triton_launch")
    monkeypatch.setenv("LGF_AUTOTUNE", value)
    with pytest.raises(ValueError, match=f"LGF_AUTOTUNE must be '0' or '1', or not set; got '{value}'"):
        triton_launch.autotuning()
    for value, expected in {"": False, "0": False, "1": True}.items():
        monkeypatch.setenv("LGF_AUTOTUNE", value)
        assert triton_launch.autotuning() is expected


def test_an_empty_name_of_a_backend_is_no_wish_for_none(monkeypatch):
    with pytest.raises(ValueError, match=r"`backend` must be one of .*got ''"):
        lgf.local_gram_flow(torch.ones(1, 2, 3, 3, 4), window=3, backend="")
    monkeypatch.setenv("LGF_BACKEND", "")
    assert lgf.local_gram_flow(torch.ones(1, 2, 3, 3, 4), window=3).shape == (1, 1, 3, 3, 9)
