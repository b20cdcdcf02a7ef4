"""The demonstration, from the options of the command to the report."""

import argparse
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch
from lgf_trainer.runtime.progress import progress
from lgf_trainer.runtime.text import format_table
from tqdm import tqdm

from lgf_kernels.core.files import write_whole

from . import cost, model, pictures
from .experiment import RAW_ROWS, SHOWN_STEP, Outcome, Task, compare
from .report import cost_table, render_html, result_table
from .tasks import EPE, KL, generated_task, video_task
from .training import Recipe

STEPS, QUICK_STEPS = 600, 6
TRAIN_CLIPS, HELD_OUT_CLIPS = 96, 12
THREADS = 1  # a model this small gains little from more, and loses much where cores are shared
GRID = (5, 10, 14)  # frames, rows, columns of tokens
VIDEO_GRID = (5, 9, 16)


def demonstrate(options: argparse.Namespace) -> Path:
    """Run the demo, print its tables, write `report.html` and `motion.png`; returns the report's path."""
    start = time.perf_counter()
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=options.output):
        pass  # whether the report can be written shows now, and not after the training
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    recipe = Recipe(steps=steps, seed=options.seed, backend=options.backend)
    print(f"lgf demo: {options.video or 'generated clips'}, {steps} steps, seed {options.seed}\n")
    task = _task(options)
    with _progress(2 * steps, "training") as bar:
        outcome = compare(task, recipe, bar.update)
    rounds = 2 if options.quick else 7
    shape = (1, 3, 8, 12, 16) if options.quick else cost.SHAPE
    costs = cost.measure_cost(shape, rounds, options.backend, lambda items: _progress(len(items), "measuring", items))

    images = {
        "losses": pictures.loss_curves(outcome),
        "noise": pictures.noise_curves(task, outcome),
        "motion": pictures.motion_fields(task, outcome),
    }
    seconds = time.perf_counter() - start
    facts = _facts(options, task, outcome, recipe) | {
        "cost_shape": " x ".join(map(str, shape)),
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "agreement": f"{_spread([figures['loss'] for figures in costs.values()]):.1g}",
        "seconds": f"{seconds:.0f}",
    }
    report = options.output / "report.html"
    write_whole(options.output / "motion.png", images["motion"])
    write_whole(report, render_html(task, outcome, costs, images, facts).encode())

    print(f"\nMotion read at noise step {SHOWN_STEP} from clips never trained on\n")
    print(format_table(result_table(task, outcome)))
    print()
    print(format_table(cost_table(costs)))
    print(f"\n{_verdict(outcome, task)}\nReport: {report}   ({seconds:.0f} s)")
    return report


def _task(options: argparse.Namespace) -> Task:
    with _progress(1, "reading the video" if options.video else "making clips") as bar:
        if options.video:
            task = video_task(options.video, VIDEO_GRID)
        else:
            train, held_out = (4, 2) if options.quick else (TRAIN_CLIPS, HELD_OUT_CLIPS)
            task = generated_task(options.seed, GRID, train, held_out)
        bar.update()
    return task


def _progress(total: int, name: str, items: Iterable | None = None) -> tqdm:
    return progress(items, total=total, desc=f"{name:<18}", bar_format="{desc} {bar:30} {n_fmt}/{total_fmt} {elapsed}")


def _verdict(outcome: Outcome, task: Task) -> str:
    """Return one sentence with the main numbers."""
    measure = next(iter(task.measures))
    before, without, trained = (outcome.scores[row][SHOWN_STEP][measure] for row in RAW_ROWS.values())
    return (
        f"{measure} of the raw features at noise step {SHOWN_STEP}: {before:.2f} before training, "
        f"{without:.2f} after training without the LGF-KL term, {trained:.2f} with it."
    )


def _facts(options: argparse.Namespace, task: Task, outcome: Outcome, recipe: Recipe) -> dict[str, object]:
    """Return the sentences of the page."""
    clips = f"{len(task.train)} for training and {len(task.held_out)} held out"
    if options.video:
        words = {
            "title": f"Local Gram Flow on {options.video.name}",
            "data": f"Windows of {task.held_out.grid[0]} frames of the video's first minute, at 8 frames per second: {clips}, "
            "all held-out frames later than any frame trained on. Shown is the half of the picture's width and height "
            f"in which most changes, at {task.video.shape[-1]} x {task.video.shape[-2]} pixels.",
            "teacher": "The teacher is computed from the pixels: for each token the 24 x 24 pixels around its centre, "
            "whitened by the video's own principal components and normalised. It is no tracker: its own PSNR is in "
            "the table.",
            "reading": f"{KL}: of the LGF distributions, lower is better. PSNR: of frame t predicted from frame t+1 by "
            "the motion that was read, higher is better; below "
            "no motion, leaving the picture as it is predicts better.",
            "drawn": "The one with most motion; arrows where the teacher sees some.",
        }
    else:
        words = {
            "title": "Local Gram Flow in miniature: motion of articulated figures",
            "data": f"Generated clips of two jointed, textured figures that pass one another, {clips}. The motion of "
            "every token and what hides what are known exactly.",
            "teacher": "The teacher is an oracle tracker. Every surface point carries one embedding through the clip; "
            "a forward version does not know points in the frame where they first appear, a backward version in the "
            "frame before they disappear. Their LGF logits are averaged.",
            "reading": f"{EPE}: distance between the displacement read and the true one, over the tokens that move by "
            "more than half a token and are visible in both frames; lower is better.",
            "drawn": "The one with most motion; arrows on the tokens that count: moving, and visible in both frames.",
        }
    names = ("lgf-kernels", "torch", "diffusers", "peft")
    return words | {
        "subtitle": "Does a video diffusion model know what moves where? With and without the LGF-KL loss.",
        "verdict": _verdict(outcome, task),
        "parameters": f"about {_parameters(task):.1f} million parameters",
        "blocks": model.BLOCKS,
        "block": model.ALIGNED_BLOCK,
        "width": model.WIDTH,
        "grid": " x ".join(map(str, task.held_out.grid)),
        "steps": recipe.steps,
        "weight": f"{recipe.lgf_weight:g}",
        "seed": recipe.seed,
        "command": shlex.join(["lgf", *sys.argv[1:]]),
        "versions": ", ".join([f"{n} {_version(n)}" for n in names] + [f"Python {platform.python_version()}"]),
    }


def _parameters(task: Task) -> float:
    student = model.make_student(0, task.held_out.grid)
    return sum(p.numel() for p in student.transformer.parameters()) / 1e6


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed as a package)"


def _spread(values: list[float]) -> float:
    return max(values) - min(values)
