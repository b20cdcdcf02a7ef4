"""What every process of a distributed test does: commands of `lgf`, one after the other.

    torchrun ... distributed_runs.py JOBS.json

A job has a name. It is a command's words, or {"copy": [FROM, TO], "after": STEP}: a run's folder as it was after that step. What a
command prints goes to NAME-RANK.txt, beside JOBS.json.
"""

import json
import os
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import lgf_cli
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState


def copy(source, target, after):
    shutil.copytree(source, target)
    for place in (target / "checkpoints").glob("step-*"):
        if int(place.name.removeprefix("step-")) > after:
            shutil.rmtree(place)


def do(name, job):
    if isinstance(job, list):
        rank = os.environ["RANK"]
        with open(file.with_name(f"{name}-{rank}.txt"), "w") as printed, redirect_stdout(printed):
            assert lgf_cli.main(job) == 0
        AcceleratorState._reset_state(reset_partial_state=True)
    elif os.environ["RANK"] == "0":
        copy(*map(Path, job["copy"]), job["after"])


file = Path(sys.argv[1])
*jobs, last = json.loads(file.read_text()).items()
# A command ends its process group with itself; here the next one needs it.
end, PartialState.destroy_process_group = PartialState.destroy_process_group, lambda *_, **__: None
for job in jobs:
    do(*job)
    dist.barrier()
PartialState.destroy_process_group = end
do(*last)
assert not dist.is_initialized()
