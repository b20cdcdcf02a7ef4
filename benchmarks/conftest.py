"""Cases of `lgf bench` that suit a device, each with every provider that runs it there: `pytest benchmarks --device cuda`."""

from dataclasses import replace

import pytest
from lgf_bench.cli import DEFAULT_DTYPE
from lgf_bench.families import CASES
from lgf_bench.providers import runnable
from lgf_cli.errors import UserError
from lgf_cli.verify import checked_device


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")


def pytest_configure(config):
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError('pytest-benchmark is not installed. Get it with: pip install "lgf-kernels[bench]"')
    try:
        checked_device(config.getoption("--device"))
    except UserError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc):
    device = metafunc.config.getoption("--device")
    kind = device.partition(":")[0]
    cases = [
        (name, replace(case, device=device, dtype=DEFAULT_DTYPE[kind]))
        for name, case in CASES.items()
        if kind != "cpu" or not case.large
    ]
    runs = [pytest.param(name, case, p, id=f"{name}-{p}") for name, case in cases for p in runnable(case)]
    metafunc.parametrize(("name", "case", "provider_name"), runs)
