"""The cases of `lgf bench` under pytest-benchmark: `make bench`, `make bench-gpu`, `pytest benchmarks --benchmark-compare`.

Every answer is checked before it is timed. For ratios use `lgf bench`, whose runs are interleaved: here each provider is
timed in a block of its own, by the wall clock, the device's work included.
"""

import functools

from lgf_bench.correctness import answer, errors, is_right, step, truth
from lgf_bench.providers import provider
from lgf_bench.timing import wait

true_answer = functools.lru_cache(maxsize=1)(truth)


def test_forward_and_backward(benchmark, name, case, provider_name):
    benchmark.group = name
    function = provider(provider_name, case)
    off = errors(answer(function, case), true_answer(case))
    assert is_right(off, case), f"errors of output and gradients: {off}"
    benchmark.extra_info.update(output_error=off[0], gradient_error=off[1], dtype=case.dtype, device=case.device)
    inputs = case.inputs()

    def run():
        step(function, inputs)
        wait(case.device)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
