"""`lgf apply`: what a trained module makes of a cache's windows, added to them."""

from pathlib import Path

from .data.cache import WindowCache
from .data.transforms import TRANSFORMS
from .runtime.distributed import this_process
from .runtime.errors import TrainerError
from .runtime.files import content_hash
from .runtime.progress import progress
from .runtime.recipe import read_recipe
from .runtime.settings import from_settings
from .tasks.base import WEIGHTS, Task


def run(trained: Path, folder: Path) -> int:
    """Add what the task of a finished run makes of every window of a cache; return how many windows were written.

    Windows that hold it already, from the same weights, are left as they are: stopped, the same command goes on.

    Raises:
        TrainerError: the run is not finished, its task makes nothing of windows, or the windows are of another kind.
    """
    if not (trained / "recipe.yaml").is_file():
        raise TrainerError(f"{trained} holds no recipe.yaml: give the folder of a finished run of lgf train")
    recipe, state = read_recipe(str(trained / "recipe.yaml")), this_process()
    task = Task.find(recipe.task)
    if not (trained / WEIGHTS).is_file():
        raise TrainerError(
            f"{trained} holds no {WEIGHTS}: give the folder of a finished run of a task that makes something of windows "
            f"(this one is of {recipe.task})"
        )
    apply = task.applied(trained, from_settings(task.Options, recipe.task_options, "task_options"), state.device)
    if apply is None:
        raise TrainerError(f"{trained} is a run of the task {recipe.task}, which makes nothing of windows")
    cache = WindowCache(folder, transforms=TRANSFORMS)
    weights, written = content_hash(trained / WEIGHTS), 0
    keys = cache.filled()[state.process_index :: state.num_processes]
    for key in progress(keys, f"{recipe.task} of windows", unit="window", disable=not state.is_main_process):
        tensors, about = cache.read(key)
        if about.get(recipe.task) == weights:
            continue
        cache.write(key, tensors | apply(cache, tensors), about | {recipe.task: weights})
        written += 1
    state.wait_for_everyone()
    if state.is_main_process:
        cache.index()
        print(f"{folder}: {written} windows written, {len(keys) - written} had it already")
    state.destroy_process_group()
    return written
