"""Commands of `lgf` that die where they are told to, in children of one process that has imported everything.

    kill_points.py

A line of JSON comes in for each, {"words": those of the command, "point": a name of POINTS or null}, and one goes out, {"ended":
the exit code, or minus the signal that ended it, "steps": those of the optimiser}. The process itself takes part in no computation.
"""

import gc
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import lgf_cli
from lgf_trainer import optimiser, train
from lgf_trainer.data import cache
from lgf_trainer.generators import lora
from lgf_trainer.runtime import checkpoint
from lgf_trainer.tasks import diffusion


def after(function, times):
    """`function`, after whose call number `times` the process is killed; before it, if `times` is negative."""
    calls = 0

    def dies(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == -times:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if calls == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return dies


#: Name -> (owner, function, call): where a training is to die.
IN_A_TRAINING = {
    "before the first step": (optimiser.GroupedAdamW, "step", -1),
    "after the first step": (optimiser.GroupedAdamW, "step", 1),
    "after the third step": (optimiser.GroupedAdamW, "step", 3),
    "writing metrics": (json, "dumps", 2),
    "before the first checkpoint": (checkpoint.Checkpoints, "save", -1),
    "a file of the first checkpoint": (diffusion, "write_tensors", 1),
    "a file of the second checkpoint": (lora, "write_tensors", 3),
    "facts of the third checkpoint": (checkpoint, "whole_file", -3),
    "before the second is renamed": (Path, "rename", -2),
    "after the second is renamed": (Path, "rename", 2),
    "removing an old one": (shutil, "rmtree", -1),
    "after removing an old one": (shutil, "rmtree", 1),
    "after the second checkpoint": (checkpoint.Checkpoints, "save", 2),
    "after the last checkpoint": (checkpoint.Checkpoints, "save", 4),
    "publishing": (shutil, "copyfileobj", 2),
    "after publishing": (train, "publish", 1),
}
#: The same of an extraction.
IN_AN_EXTRACTION = {
    "before the second window has its name": (os, "replace", -3),  # the first is that of the settings
    "after the first window": (cache.WindowCache, "write", 1),
}
POINTS = IN_A_TRAINING | IN_AN_EXTRACTION


def attempt(words, point=None):
    """Run in a child process; its exit code, or minus the signal that ended it, and the optimiser steps that it made."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where the answers go
        step = optimiser.GroupedAdamW.step

        def counted(self, index):
            os.write(writer, b".")
            return step(self, index)

        optimiser.GroupedAdamW.step = counted
        if point:
            owner, name, times = POINTS[point]
            setattr(owner, name, after(getattr(owner, name), times))
        os._exit(lgf_cli.main(words))
    os.close(writer)
    steps = len(os.fdopen(reader, "rb").read())
    return {"ended": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "steps": steps}


if __name__ == "__main__":
    gc.freeze()  # children need no copy of what nobody collects
    for line in sys.stdin:
        print(json.dumps(attempt(**json.loads(line))), flush=True)
