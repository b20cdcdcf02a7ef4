"""Separate processes: for memory, measured in a fresh one, and for jobs on a GPU, which a provider may break."""

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from lgf_cli.errors import UserError


class BrokenDeviceError(Exception):
    """A provider left the GPU unusable for its process: (its name, its error)."""


class DeadProcessError(RuntimeError):
    """A process ended without a result, as by a crash in a native library or for want of memory."""


def in_fresh_process(function: Callable, *arguments):
    """Return what a function of a module returns in a process of its own, or raise what it raises there."""
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        raise DeadProcessError("its process died: it crashed, was killed, or the memory ran out") from error


def run_isolated(job: Callable, arguments: argparse.Namespace) -> int:
    """Run `job(arguments, broken)` in a process of its own, and anew without each provider that breaks the GPU.

    After an illegal access nothing runs on a GPU any more in the process that made it. A new one goes on from the numbers
    that --out has; `broken` has the reason why it leaves providers out, by their names.
    """
    broken: dict[str, str] = {}
    while True:
        try:
            return in_fresh_process(job, arguments, broken)
        except BrokenDeviceError as error:
            name, reason = error.args
            if not arguments.out:
                raise UserError(
                    f"{name} broke the GPU for this process: {reason}. Leave it out with --providers."
                ) from error
            print(f"{name} broke the GPU for this process ({reason}): starting anew without it", flush=True)
            broken[name] = f"broke the GPU: {reason}"
            arguments.resume = True
        except DeadProcessError as error:
            kept = f" What was finished is in {arguments.out}; --resume goes on." if arguments.out else ""
            raise UserError(f"the measurement ended early: {error}. --providers leaves one out.{kept}") from error
