"""Jobs for the processes of `lgf bench`, which import them by name: they need no torch, and so start at once."""

import json
import os
import signal
from argparse import Namespace

from lgf_bench.processes import BrokenDeviceError
from lgf_cli.errors import UserError


def job(arguments: Namespace, broken: dict[str, str]) -> int:
    """Write down what it was called with, and break the GPU by the first provider that is not left out."""
    with open(arguments.kept, "a") as kept:
        kept.write(json.dumps({"pid": os.getpid(), "resume": arguments.resume, "broken": broken}) + "\n")
    for name in arguments.breaks:
        if name not in broken:
            raise BrokenDeviceError(name, "illegal access")
    return 3


def dying_job(arguments: Namespace, broken: dict[str, str]) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def mistaken_job(arguments: Namespace, broken: dict[str, str]) -> int:
    raise UserError("a mistake of the user")
