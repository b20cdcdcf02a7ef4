"""Binding and compilation of what a family's launchers launch, by Triton's own run-time path, without a GPU.

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


kernels = {}


def bind(kernel, grid, *arguments, enable_fp_fusion=True, **constants):
    kernel.warmup(*arguments, grid=(1,), enable_fp_fusion=enable_fp_fusion, **constants)
    kernels[f"{kernel.fn.__module__}.{kernel.fn.__name__}"] = kernel


def compiled() -> dict[str, int]:
    """Return the number of binaries of each kernel."""
    return {name: sum(len(cache[0]) for cache in kernel.device_caches.values()) for name, kernel in kernels.items()}


def main(family: str) -> None:
    launch_every_kernel = importlib.import_module(f"{family}.triton_cases").launch_every_kernel
    driver.set_active(Hopper())
    # With a hook, such as monitors set, Triton writes the constants of a kernel as JSON: all must be names or numbers.
    knobs.runtime.jit_post_compile_hook = lambda **about: None
    with launch.overridden(run=bind):
        for resolution in ((3, 16, 16), (2, 16, 16), (5, 9, 19), (3, 1, 33), (2, 17, 1), (2, 1, 1)):
            launch_every_kernel(*resolution)
            print(json.dumps(compiled()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
