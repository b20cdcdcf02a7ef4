"""`lgf apply`: what a trained module makes of a cache's windows, added to them."""

from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from .data.cache import WindowCache
from .runtime.errors import TrainerError
from .runtime.files import content_hash
from .runtime.recipe import read_recipe
from .tasks.base import WEIGHTS, Task, make_task


def run(trained: Path, folder: Path) -> int:
    """Add what the task of a finished run makes of every window of a cache; return how many windows were written.

    Windows that hold it already, from the same weights, are left as they are: stopped, the same command goes on.

    Raises:
        TrainerError: the run is not finished, its task makes nothing of windows, or the windows are of another kind.
    """
    if not (trained / WEIGHTS).is_file():
        raise TrainerError(f"{trained} holds no {WEIGHTS}: give the folder of a finished run of lgf train")
    recipe = read_recipe(str(trained / "recipe.yaml"))
    cache, accelerator = WindowCache(folder), Accelerator(cpu=not torch.accelerator.is_available())
    if Task.find(recipe.task).apply is Task.apply:
        raise TrainerError(f"{trained} is a run of the task {recipe.task}, which makes nothing of windows")
    keys = cache.keys()[accelerator.process_index :: accelerator.num_processes]
    if not keys:
        raise TrainerError(f"{folder} has no windows yet. Fill it with lgf extract")
    task = make_task(recipe, cache, accelerator)
    model = task.make_model()
    task.read(trained, model)
    model.eval().to(accelerator.device)
    weights, written = content_hash(trained / WEIGHTS), 0
    for key in tqdm(keys, f"{recipe.task} of windows", unit="window", disable=not accelerator.is_main_process):
        tensors, about = cache.read(key)
        if about.get(recipe.task) == weights:
            continue
        cache.write(key, tensors | task.apply(model, tensors), about | {recipe.task: weights})
        written += 1
    if accelerator.is_main_process:
        print(f"{folder}: {written} windows written, {len(keys) - written} had it already")
    return written
