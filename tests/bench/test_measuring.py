"""The basis of the numbers: the truth, the providers' answers, the clocks, the memory, the ceilings."""

import json
import pickle
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from lgf_bench import ceilings, correctness, families, measure, memory, providers, results, timing
from lgf_bench.families import gram_flow, token_relation
from lgf_bench.families.base import Case, Work, on_backend
from lgf_bench.families.gram_flow import LgfKl
from lgf_bench.families.point_correspondence import PointCorrespondence
from lgf_bench.families.token_relation import TokenRelation
from lgf_bench.measure import Plan, measure_case
from support.bench_cases import SMALL
from support.memory_here import memory_after_a_large_block, memory_here

from lgf_kernels.core import native, registry

#: Memory, measured in this process or in a fresh one, which takes seconds to start.
WHERE = [
    pytest.param(memory_here, id="here"),
    pytest.param(memory.peak_memory, id="in a fresh process", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", SMALL)
def test_the_truth_in_parts_is_the_truth(name, monkeypatch):
    case = SMALL[name]
    whole = case.inputs().double()
    output = correctness.step(on_backend("reference", case), whole)
    answer = correctness.Answer(output, correctness.gradients(whole))
    for matrix in (2**24, 600):  # groups of all frames, of one frame
        monkeypatch.setattr(token_relation, "MATRIX", matrix)
        assert max(correctness.errors(answer, correctness.truth(case))) < 1e-14


@dataclass(frozen=True)
class TwoLeaves(Case):
    """sum(a * b * c), by two tensors of which one is in a list."""

    operator = "two_leaves"
    differentiable = ("a", "others")

    def layout(self):
        return {"a": self.empty(*self.shape), "others": [self.empty(*self.shape)], "c": self.empty(*self.shape)}

    def call(self, *, a, others, c, backend=None):
        return (a * others[0] * c).sum()

    def flop(self):
        return 6, 12


def test_gradients_are_of_every_tensor_that_requires_one_and_the_worst_counts():
    case = TwoLeaves((3,))
    a, (b,), c = case.inputs().tensors.values()
    true = correctness.truth(case)
    assert [gradient.dtype for gradient in true.gradients] == [torch.float64] * 2
    torch.testing.assert_close(true.gradients, [(b * c).detach().double(), (a * c).detach().double()])
    assert correctness.errors(correctness.answer(case.call, case), true) == pytest.approx((0, 0), abs=1e-6)

    def one_off(a, others, c):
        return case.call(a=a, others=[others[0].detach() + 1.5 * (others[0] - others[0].detach())], c=c)

    def none_of_one(a, others, c):
        return case.call(a=a, others=[others[0].detach()], c=c)

    for function, expected in ((one_off, 0.5), (none_of_one, 1.0)):
        assert correctness.errors(correctness.answer(function, case), true)[1] == pytest.approx(expected, rel=1e-5)
    assert case.work()["backward"] == Work(12, 2 * 2 * 3 * 4)
    assert case.work()["forward"] == Work(6, 3 * 3 * 4)


def test_inputs_are_the_same_every_time_and_differ_from_each_other():
    case = SMALL["small-window"]
    (one, again), other = (case.tensors() for _ in range(2)), case.tensors()["teachers"][0]
    assert torch.equal(one["student"], again["student"]) and not torch.equal(one["student"], other)


def test_a_family_is_found_by_its_file():
    files = Path(families.__file__).parent.glob("*.py")
    assert {file.__name__.rpartition(".")[2] for file in families._FILES} == {it.stem for it in files} - {"__init__"}
    assert {"lgf_kl", "local_gram_flow", "token_relation"} <= set(families.OPERATORS)
    assert {"pairs", "tokens", "channels", "window", "relations"} <= set(families.sweeps(gpu=True))


@pytest.mark.parametrize("name", SMALL)
def test_every_provider_is_right(name):
    case = SMALL[name]
    here = [
        provider for provider in providers.runnable(case) if not providers.providers(case.operator)[provider].compiles
    ]
    assert {"eager", "portable"} <= set(here)
    true = correctness.truth(case)
    for provider in here:
        errors = correctness.errors(correctness.answer(providers.provider(provider, case), case), true)
        assert max(errors) < 1e-5, provider
        assert correctness.is_right(errors, case)


@pytest.mark.parametrize(
    "name",
    [
        "small-relation",
        pytest.param("small-videorepa", marks=pytest.mark.slow),
        pytest.param("small-window", marks=pytest.mark.slow),  # 9 shifts; the 49 of the others compile for a minute
    ],
)
def test_what_torch_compiles_is_right(name):
    case = SMALL[name]
    answer = correctness.answer(providers.provider("compile", case), case)
    torch._dynamo.reset()
    assert max(correctness.errors(answer, correctness.truth(case))) < 1e-5


def test_what_is_wrong_is_not_right():
    case, relation = SMALL["small-lgf"], SMALL["small-relation"]
    assert not correctness.is_right((float("nan"), 0.0), case) and not correctness.is_right((0.0, float("nan")), case)
    assert not correctness.is_right((0.0, 2e-4), case) and not correctness.is_right((2e-4, 0.0), case)
    half = replace(case, dtype="bfloat16")
    assert correctness.is_right((5e-3, 2e-2), half)
    assert not correctness.is_right((2e-2, 0.0), half) and not correctness.is_right((0.0, 3e-2), half)
    assert correctness.is_right((1e-4, 5e-3), relation) and not correctness.is_right((0.0, 2e-2), relation)
    assert not correctness.is_right((2e-4, 0.0), relation)


def test_the_providers_offered():
    here = providers.offered(SMALL["small-cached"])
    assert here["eager"] is None and "features" in here["natten"]
    assert "chunked" not in here and "bmm" not in providers.offered(SMALL["small-relation"])
    huge = TokenRelation((1, 1000, 1000, 8))
    assert "GiB" in providers.offered(huge)["eager"] and providers.offered(huge)["portable"] is None


@pytest.mark.parametrize("name", [*SMALL, "points"])
def test_the_registry_is_asked_with_the_call_of_the_operator(name, monkeypatch):
    case, asked = SMALL.get(name) or PointCorrespondence((1, 2, 2, 4, 5, 8), 3), []
    monkeypatch.setattr(registry, "unsupported_reason", lambda name, call: asked.append(call))
    case.call(backend="portable", **case.tensors())
    assert set(asked) == {case.registry_call()}


def test_a_backend_with_a_limit_is_absent_beyond_it(monkeypatch):
    monkeypatch.setattr(providers, "free_memory", lambda device: None)
    monkeypatch.setattr(native, "unsupported_reason", lambda call: None)
    for teachers, reason in ((15, None), (16, "its CUDA C++ kernels take at most 15 teachers, and there are 16")):
        case = LgfKl((1, 2, 4, 5, 8), teacher_channels=(4,) * teachers, device="cuda")
        assert providers.offered(case)["native"] == reason


def test_a_fifth_of_the_memory_stays_free(monkeypatch):
    monkeypatch.setattr(providers, "free_memory", lambda device: 100 * 2**30)
    assert providers.memory_shortage(80 * 2**30, "cpu") is None
    assert providers.memory_shortage(81 * 2**30, "cpu") == "needs about 81 GiB, 100 GiB are free"
    monkeypatch.setattr(providers, "free_memory", lambda device: None)
    assert providers.memory_shortage(81 * 2**30, "cpu") is None


@pytest.mark.parametrize("measure", WHERE)
def test_the_guessed_memory_is_that_of_the_measurement(measure):
    """Within a factor of two, or the guard against running out of memory is none."""
    relation = TokenRelation((1, 8, 200, 16))
    flow = LgfKl((1, 5, 24, 32, 64))
    for case, names in ((relation, ("eager",)), (flow, ("eager", "eager-unfold", "bmm"))):
        for name in names:
            ratio = providers.providers(case.operator)[name].needs(case) / measure(case, name)
            assert 0.5 < ratio < 2, (name, ratio)


class Clock:
    """It moves only when it is told to: how long things really take is the machine's business."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def wall(monkeypatch):
    clock = Clock()
    monkeypatch.setitem(timing.CLOCKS, "wall", clock)
    return clock


def test_runs_are_interleaved_and_halves_add_up(wall):
    order = []

    def function(name, forward, backward):
        def call(student, teachers):
            order.append(name)
            wall.move(forward)
            output = student.sum()
            output.register_hook(lambda _: wall.move(backward))
            return output

        return call

    functions = {"a": function("a", 0.0, 1.0), "b": function("b", 2.0, 4.0)}
    seconds = timing.interleaved(functions, SMALL["small-lgf"], range(3))
    assert order == ["a", "b"] * 3
    assert seconds["a"] == {"forward": [0.0] * 3, "backward": [1.0] * 3, "both": [1.0] * 3}
    assert seconds["b"] == {"forward": [2.0] * 3, "backward": [4.0] * 3, "both": [6.0] * 3}


def test_every_run_begins_without_a_gradient():
    """Adding to the last one's would be timed too."""
    found = []
    function = {"a": lambda student, teachers: found.append(student.grad) or student.sum()}
    timing.interleaved(function, SMALL["small-lgf"], range(3))
    assert found == [None] * 3


def test_the_best_of_several_runs_after_a_first_that_does_not_count(monkeypatch):
    calls, times = [], iter([0.0, 1.0, 10.0, 14.0, 20.0, 22.0, 30.0, 36.0])
    monkeypatch.setattr(timing, "now", lambda: next(times))
    assert timing.best(lambda: calls.append(1), "cpu", runs=3, at_least=2) == 1.0
    assert len(calls) == 8


def test_the_cpu_clock_does_not_count_waiting(wall):
    def function(student, teachers):
        time.sleep(0.05)
        return student.sum()

    with timing.use_clock("cpu"):
        assert timing.clock_in_use("cpu") == "cpu" and timing.clock_in_use("cuda:0") == "events"
        seconds = timing.interleaved({"a": function}, SMALL["small-lgf"], range(3))
        assert timing.first_call(lambda: wall.move(3.0), "cpu")[1] == 3.0, "compilers work in other processes"
    assert 0 < min(seconds["a"]["both"]) < 0.05


def test_a_clock_is_that_of_a_block_even_if_it_fails(wall):
    with pytest.raises(ValueError), timing.use_clock("cpu"):
        raise ValueError
    assert timing.clock_in_use("cpu") == "wall"


def test_the_first_call_is_timed_without_making_its_inputs(monkeypatch, ceiling, wall):
    real = Case.inputs
    monkeypatch.setattr(Case, "inputs", lambda case: wall.move(100.0) or real(case))
    (row,) = measure_case("small-lgf", SMALL["small-lgf"], Plan(["portable"], 2, ("first",), ceiling))
    assert row["first_call_s"] == 0.0


def test_spread():
    assert timing.spread([0.005, 0.001, 0.003, 0.002, 0.004]) == pytest.approx(
        {"median_ms": 3, "low_ms": 2, "high_ms": 4}
    )


def test_overhead_is_of_the_smallest_inputs(monkeypatch):
    shapes = set()

    def function(student, teachers):
        shapes.add(tuple(student.shape))
        time.sleep(0.001)
        return student.sum()

    assert timing.overhead(function, families.CASES["cogvideox-latent"]) >= 0.001
    assert shapes == {(1, 2, 8, 8, 16)}
    times = iter([10.0, 60.0])
    monkeypatch.setattr(timing, "now", lambda: next(times))
    assert timing.overhead(function, SMALL["small-lgf"]) == 50.0 / timing.CALLS


def test_a_row_says_what_was_measured_of_whom(monkeypatch, ceiling):
    case, timed = SMALL["small-lgf"], {}

    def seconds(functions, case, rounds):
        timed.update(functions)
        return {name: {"forward": [0.1] * 2, "backward": [0.15] * 2, "both": [0.25] * 2} for name in functions}

    right = {name: providers.provider(name, case) for name in ("eager", "portable")}
    monkeypatch.setattr(measure, "provider", lambda name, case: right[name])
    monkeypatch.setattr(timing, "interleaved", seconds)
    monkeypatch.setattr(timing, "first_call", lambda action, device: (action(), 1.0))
    monkeypatch.setattr(timing, "overhead", lambda function, case: 3e-6)
    monkeypatch.setattr(memory, "peak_memory", lambda case, name, function: {"eager": 11, "portable": 12}[name])
    eager = gram_flow.BASELINES["eager"]._replace(compiles=True)
    monkeypatch.setitem(gram_flow.BASELINES, "eager", eager)
    rows = {row["provider"]: row for row in measure_case("small-lgf", case, Plan(list(right), 2, ceiling=ceiling))}
    assert timed == right, "the functions whose answers were checked"
    assert rows["eager"]["peak_bytes"] == 11 and rows["portable"]["peak_bytes"] == 12
    assert rows["portable"]["overhead_us"] == pytest.approx(3.0) and "overhead_us" not in rows["eager"]
    assert rows["portable"]["first_call_s"] == 0.75, "what it takes longer than another"


@pytest.mark.parametrize(("risen", "peak"), [(10_000, 10_000 - 4 - 3 * 6 * 9 * 8 * 4), (100, 0), (0, 0), (None, None)])
def test_output_and_gradient_are_no_part_of_the_peak(monkeypatch, risen, peak):
    monkeypatch.setattr(memory, "rise", lambda action, device: action() or risen)
    case = SMALL["small-lgf"]
    assert memory._one_step(case, providers.provider("portable", case)) == peak


@pytest.mark.parametrize("measure", WHERE)
def test_memory_counts_what_is_allocated(measure):
    """Eager token relations hold several n x n matrices; the tiles of the portable backend do not."""
    case = TokenRelation((1, 8, 300, 16))
    matrix = (8 * 300) ** 2 * 4
    assert measure(case, "eager") > 3 * matrix
    assert measure(case, "portable") < matrix


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("small-logits", "portable"),
        ("small-cached", "bmm"),
        pytest.param("small-relation", "compile", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("measure", WHERE)
def test_memory_is_measured_whatever_the_operator(name, provider, measure):
    assert measure(SMALL[name], provider) >= 0


def test_the_fresh_process_measures_the_same_case_with_the_same_threads(monkeypatch):
    case, asked = SMALL["small-cached"], []

    def in_this_process(function, *arguments):
        torch.set_num_threads(7)
        return function(*pickle.loads(pickle.dumps(arguments)))

    def rise(case, provider):
        asked.append((case, provider, torch.get_num_threads()))
        return 5

    monkeypatch.setattr(memory, "in_fresh_process", in_this_process)
    monkeypatch.setattr(memory, "_high_water_rise", rise)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert memory.peak_memory(case, "eager") == 5
    finally:
        torch.set_num_threads(before)
    assert asked == [(case, "eager", 3)]


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell peaks")
def test_what_was_freed_before_does_not_count():
    """Neither hides a higher peak anything, nor do blocks that are reused, and the limits of malloc do not grow."""

    def blocks(number):
        return [torch.ones(2**14) for _ in range(number)]

    higher = torch.ones(64, 2**20)
    del higher
    *freed, last = blocks(1000)
    del freed
    assert 0.95 * 900 * 2**16 < memory.rise(lambda: blocks(900), "cpu") < 1.3 * 900 * 2**16
    assert last.sum() == 2**14


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell peaks")
def test_memory_of_a_case_is_the_same_whatever_was_freed_before():
    """glibc keeps freed blocks, up to twice the largest that was ever freed, unless its limits are set."""
    case = TokenRelation((1, 8, 200, 16))
    matrix = (8 * 200) ** 2 * 4
    for _ in range(4):
        assert 3.5 * matrix < memory_after_a_large_block(case, "eager") < 4.5 * matrix


def test_ceilings_are_positive_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(ceilings, "COPY", {"cpu": 2**22})
    monkeypatch.setattr(ceilings, "GEMM", {"cpu": 64})
    monkeypatch.setattr(ceilings, "RUNS", 2)
    found = ceilings.ceilings("cpu", ("bfloat16",), tmp_path)
    assert found["copy"] > 1e8 and found["L2"] > 1e8 and set(found["gemm"]) == {"float32", "bfloat16"}
    assert min(found["gemm"].values()) > 1e6
    monkeypatch.setattr(ceilings, "_copy", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(ceilings, "_gemm", lambda *_: pytest.fail("measured again"))
    assert ceilings.ceilings("cpu", ("float32", "bfloat16"), tmp_path) == found
    monkeypatch.setattr(ceilings, "_copy", lambda device, size: found["copy"] / 2 if size == 2**22 else 1e15)
    monkeypatch.setattr(ceilings, "_gemm", lambda device, dtype: 1e15 if dtype == "bfloat16" else 1.0)
    better = ceilings.ceilings("cpu", ("bfloat16",), tmp_path, again=True)  # a busy machine lowers nothing
    assert (better["copy"], better["L2"]) == (found["copy"], 1e15)
    assert better["gemm"] == {"float32": found["gemm"]["float32"], "bfloat16": 1e15}
    monkeypatch.setattr(ceilings, "_copy", lambda *_: pytest.fail("measured again"))
    other = json.loads((tmp_path / results.CEILINGS).read_text()) | {"threads": 99}
    (tmp_path / results.CEILINGS).write_text(json.dumps(other))
    with pytest.raises(pytest.fail.Exception):
        ceilings.ceilings("cpu", ("float32",), tmp_path)


def test_a_rate_counts_reading_writing_and_multiply_adds(monkeypatch):
    monkeypatch.setattr(ceilings, "best", lambda action, device, runs, at_least=1: 0.5)
    assert ceilings._copy("cpu", 2**20) == 2 * 2**20 / 0.5
    monkeypatch.setattr(ceilings, "GEMM", {"cpu": 10})
    assert ceilings._gemm("cpu", "float32") == 2 * 10**3 / 0.5
    assert ceilings.flops({"gemm": {"float32": 5.0, "bfloat16": 2.0}}, "bfloat16") == 5.0


def test_the_floor_is_by_the_ceilings_of_the_type_and_of_memory():
    ceiling = {"copy": 1.0, "L2": 1e9, "gemm": {"float32": 10.0, "bfloat16": 50.0, "float64": 5.0}}

    def floor(work: Work, dtype: str) -> float:
        return ceilings.floor_ms({"both": work}, dtype, ceiling)["both"]

    assert floor(Work(100, 10), "bfloat16") == 10e3
    assert [floor(Work(1000, 1), dtype) for dtype in ("bfloat16", "float32", "float64")] == [20e3, 100e3, 200e3]


def test_rows_hold_the_floor_and_only_what_was_asked(ceiling):
    plan = Plan(["portable"], 2, (), ceiling)
    (row,) = measure_case("small-lgf", SMALL["small-lgf"], plan)
    assert row["floor_ms"]["both"] == pytest.approx(1e3 * max(row["flop"]["both"], row["bytes"]["both"]) / 1e9)
    assert not {"peak_bytes", "overhead_us", "first_call_s"} & set(row)


def test_half_precision_is_compared_on_the_same_inputs():
    case = replace(SMALL["small-lgf"], dtype="bfloat16")
    errors = correctness.errors(correctness.answer(providers.provider("portable", case), case), correctness.truth(case))
    assert errors[0] < 1e-5 and correctness.is_right(errors, case)
