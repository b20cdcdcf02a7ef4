"""The cases of `lgf bench` under pytest-benchmark: `make bench`, or `pytest benchmarks --benchmark-compare`.

Every answer is checked before it is timed. For ratios use `lgf bench`, whose runs are interleaved: here each provider is
timed in a block of its own.
"""

import functools

import pytest

from lgf_kernels.bench.cases import CASES
from lgf_kernels.bench.measure import errors, step, truth
from lgf_kernels.bench.providers import provider, providers

true_answer = functools.cache(lambda name: truth(CASES[name]))
RUNS = [(name, p) for name, case in CASES.items() for p in providers(case)]


@pytest.mark.parametrize(("name", "provider_name"), RUNS, ids=lambda value: value)
def test_forward_and_backward(benchmark, name, provider_name):
    case, benchmark.group = CASES[name], name
    loss = provider(provider_name, case)
    loss_error, gradient_error = errors(loss, case, *true_answer(name))
    assert loss_error <= 1e-4 and gradient_error <= 1e-4
    benchmark.extra_info.update(loss_error=loss_error, gradient_error=gradient_error)
    benchmark.pedantic(step, args=(loss, *case.inputs()), rounds=5, warmup_rounds=1)
