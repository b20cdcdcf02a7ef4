"""Kill a training run in many places, start it again, and write down how that went.

    kill_points.py FOLDER RECIPE --overrides

One process imports everything and forks for every run: it takes part in no computation itself.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from lgf_trainer import checkpoint, optimiser, run
from lgf_trainer.train import main


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


#: Name -> (owner, function, call): where to die.
POINTS = {
    "before the first step": (optimiser.GroupedAdamW, "step", -1),
    "after the first step": (optimiser.GroupedAdamW, "step", 1),
    "after the third step": (optimiser.GroupedAdamW, "step", 3),
    "writing metrics": (json, "dumps", 2),
    "before the first checkpoint": (checkpoint.Checkpoints, "save", -1),
    "a file of the first checkpoint": (checkpoint, "save_file", 1),
    "a file of the second checkpoint": (checkpoint, "save_file", 4),
    "facts of the third checkpoint": (checkpoint, "_sync_and_hash", -13),
    "before the second is renamed": (Path, "rename", -2),
    "after the second is renamed": (Path, "rename", 2),
    "removing an old one": (shutil, "rmtree", -1),
    "after removing an old one": (shutil, "rmtree", 1),
    "after the second checkpoint": (checkpoint.Checkpoints, "save", 2),
    "after the last checkpoint": (checkpoint.Checkpoints, "save", 4),
    "publishing": (shutil, "copyfile", 2),
    "after publishing": (run, "publish", 1),
}


def attempt(arguments, point=None):
    """Run in a child process; (the signal that ended it, the optimiser steps it made)."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        step = optimiser.GroupedAdamW.step

        def counted(self, index):
            os.write(writer, b".")
            return step(self, index)

        optimiser.GroupedAdamW.step = counted
        if point:
            owner, name, times = point
            setattr(owner, name, after(getattr(owner, name), times))
        main(arguments)
        os._exit(0)
    os.close(writer)
    steps = len(os.fdopen(reader, "rb").read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), steps


if __name__ == "__main__":
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    _, needed = attempt([*arguments, "--run.output", str(folder / "uninterrupted")])
    for name, point in POINTS.items():
        mine = [*arguments, "--run.output", str(folder / name)]
        first, steps = attempt(mine, point)
        second, more = attempt(mine)
        report = {"name": name, "signals": [-first, second], "steps": steps + more, "steps without kill": needed}
        (folder / f"{name}.json").write_text(json.dumps(report))
