"""Commands of the trainer in processes of their own: two that know of each other, and one that dies at a point of its own, for a
killer outside might come too late.

    processes.py MODULE FUNCTION CALL lgf's arguments
"""

import importlib
import os
import signal
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Seconds after which processes that wait for each other are taken for hung: more than they need on the busiest machine.
PATIENCE = 1800


def environment() -> dict[str, str]:
    """Of a process of the trainer: the code of this checkout, and one thread, for with more tiny models are slower."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "python", ROOT / "tests")))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_two(*words: object, processes: int = 2, **variables: str) -> subprocess.CompletedProcess:
    """Processes of `python WORDS`. The name of a machine, by which they would find each other, may be known to nobody."""
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(processes), *map(str, words)]
    done = subprocess.run(command, env=environment() | variables, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done


def run_and_kill(module: str, function: str, call: int, words: list[str]) -> None:
    """`lgf WORDS`, killed after call number `call` of a function of a module, or before it if `call` is negative."""
    command = [sys.executable, "-P", __file__, module, function, str(call), *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, f"it was not killed, and ended with {done.returncode}:\n{done.stderr}"


if __name__ == "__main__":
    import lgf_cli
    from trainer.kill_points import after

    module, function, call, *words = sys.argv[1:]
    place, _, name = function.rpartition(".")
    owner = importlib.import_module(module)
    owner = attrgetter(place)(owner) if place else owner
    setattr(owner, name, after(getattr(owner, name), int(call)))
    sys.exit(lgf_cli.main(words))
