"""Memory of a case, measured in the tests' process: most of what a fresh one costs is its start."""

from lgf_bench import correctness, memory
from lgf_bench.families.base import Case
from lgf_bench.providers import provider


def memory_here(case: Case, name: str) -> int | None:
    """Return what `memory.peak_memory` would.

    The system may have reclaimed pages of libraries from a process that has run for long: a step before brings back those
    that the case needs, which would count as its memory.
    """
    correctness.step(provider(name, case), case.inputs())
    return memory._high_water_rise(case, name)
