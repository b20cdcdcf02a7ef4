"""Keys for which Triton compiles what a family's launchers launch, by its own run-time path, without a GPU.

The program prints a JSON line for each resolution. It runs in a process of its own, because in that of the tests kernels
are interpreted.
"""

import importlib
import json
import os
import sys

os.environ.pop("TRITON_INTERPRET", None)

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lgf_kernels.core import triton_launch as launch


class Hopper:
    """A driver that compiles for Hopper and launches nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


keys: dict[str, set[str]] = {}


def bind(kernel, grid, *arguments, enable_fp_fusion=True, **constants):
    kernel.warmup(*arguments, grid=(1,), enable_fp_fusion=enable_fp_fusion, **constants)


def noted(key: str, fn, **about) -> bool:
    """Note what a kernel would be compiled for, and leave the compilation out.

    Triton has written the constants as JSON for this hook, as for those of monitors: all must be names or numbers.
    """
    keys.setdefault(f"{fn.module}.{fn.name}", set()).add(key)
    return True


def main(family: str) -> None:
    launch_every_kernel = importlib.import_module(f"{family}.triton_cases").launch_every_kernel
    driver.set_active(Hopper())
    knobs.runtime.jit_cache_hook = noted
    with launch.overridden(run=bind):
        for resolution in (
            (3, 16, 16),
            (2, 16, 16),
            (5, 9, 19),
            (3, 1, 33),
            (2, 17, 1),
            (2, 1, 1),
            (4, 8, 18),
            (3, 7, 5),
        ):
            launch_every_kernel(*resolution)
            print(json.dumps({name: len(of_kernel) for name, of_kernel in keys.items()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
