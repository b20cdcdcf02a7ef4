"""What every process of a distributed test does: runs of `lgf train`, one after the other.

    torchrun ... distributed_runs.py JOBS.json

A job is the command's arguments, or {"copy": [FROM, TO], "after": STEP}: a run's folder as it was after that step.
"""

import json
import shutil
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from lgf_trainer.train import main


def copy(source, target, after):
    shutil.copytree(source, target)
    for place in (target / "checkpoints").glob("step-*"):
        if int(place.name.removeprefix("step-")) > after:
            shutil.rmtree(place)


# A command ends its process group with itself; here the next one needs it.
PartialState.destroy_process_group = lambda *_, **__: None

for job in json.loads(Path(sys.argv[1]).read_text()):
    if isinstance(job, list):
        main(job)
        AcceleratorState._reset_state(reset_partial_state=True)
    elif dist.get_rank() == 0:
        copy(*map(Path, job["copy"]), job["after"])
    dist.barrier()
dist.destroy_process_group()
