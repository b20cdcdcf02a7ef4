"""Pictures of the report, as PNG bytes that are legible on a light and on a dark page."""

import matplotlib
import torch
from lgf_trainer.evaluation.pictures import draw_arrows, faded, png
from matplotlib.figure import Figure
from torch import Tensor

from .experiment import NOISE_STEPS, PROJECTOR_ROW, RAW_ROWS, SHOWN_STEP, Outcome, Task

INK = "#808890"  # legible on white and on black
COLOURS = {"before": "#98a1ab", "without": "#e08a2e", "with": "#2f9e77", "projector": "#4c7fd9"}
STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
}


def loss_curves(outcome: Outcome) -> bytes:
    """Return diffusion and LGF-KL loss of both arms over the steps: each step pale, the running mean on top."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        for axes, column, title in zip(figure.subplots(1, 2), (0, 1), ("diffusion loss", "LGF-KL loss"), strict=True):
            for arm, history in outcome.losses.items():
                axes.plot(history[:, column], color=COLOURS[arm], alpha=0.18, linewidth=0.8)
                axes.plot(_running_mean(history[:, column]), color=COLOURS[arm], linewidth=2, label=RAW_ROWS[arm])
            axes.set_title(title, fontsize=11)
            axes.set_xlabel("training step")
            axes.set_ylim(bottom=0)
        axes.legend(frameon=False, labelcolor=INK)
        return png(figure, transparent=True)


def noise_curves(task: Task, outcome: Outcome) -> bytes:
    """Return every measure over the noise step at which the features are read, with the context as level lines."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        grid = figure.subplots(1, len(task.measures), squeeze=False)[0]
        names = {label: COLOURS[state] for state, label in RAW_ROWS.items()} | {PROJECTOR_ROW: COLOURS["projector"]}
        for axes, measure in zip(grid, task.measures, strict=True):
            for (name, scores), dashes in zip(task.context.items(), (":", "--"), strict=True):
                if measure in scores:
                    axes.axhline(scores[measure], color=INK, linestyle=dashes, linewidth=1.2, label=name)
            for name, colour in names.items():
                values = [outcome.scores[name][step][measure] for step in NOISE_STEPS]
                axes.plot(NOISE_STEPS, values, "o-", color=colour, linewidth=2, markersize=4, label=name)
            axes.set_title(f"{measure}, held-out clips", fontsize=11)
            axes.set_xlabel("noise step (0 is a clean video, 999 is noise)")
        figure.legend(*grid[-1].get_legend_handles_labels(), frameon=False, loc="outside right center", fontsize=9)
        return png(figure, transparent=True)


def motion_fields(task: Task, outcome: Outcome, pairs: int = 3) -> bytes:
    """Return the motion of a held-out clip, a row for each of a few frame pairs: the reference, then what was learned."""
    clip = int(task.drawn.flatten(1).sum(1).argmax())
    columns = {task.reference[0]: task.reference[1], "teacher": task.teacher}
    columns |= {RAW_ROWS[state]: motion for state, motion in outcome.motion.items()}
    if task.teacher is task.reference[1]:
        del columns["teacher"]
    height, width = task.video.shape[-2:]
    times = torch.linspace(0, task.drawn.shape[1] - 1, min(pairs, task.drawn.shape[1])).round().int().tolist()
    figure = Figure(figsize=(3.1 * len(columns), 3.1 * height / width * len(times) + 0.7), layout="constrained")
    figure.patch.set_facecolor("white")
    for row, t in zip(figure.subplots(len(times), len(columns), squeeze=False), times, strict=True):
        for axes, (title, motion) in zip(row, columns.items(), strict=True):
            axes.imshow(faded(task.video[clip, t]), extent=(0, width, height, 0))
            draw_arrows(axes, motion[clip, t], task.drawn[clip, t])
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if t == times[0]:
                axes.set_title(title, fontsize=12, color="#222222")
        row[0].set_ylabel(f"frame {t} to {t + 1}", fontsize=11, color="#222222")
    figure.supxlabel(
        f"arrows: displacement to the next frame, to scale; learned ones read from raw features at noise step {SHOWN_STEP}",
        fontsize=10,
        color="#555555",
    )
    return png(figure, transparent=False)


def _running_mean(values: Tensor) -> Tensor:
    """Return mean over the steps near each step, a tenth of all of them."""
    reach = max(1, len(values) // 20)
    return torch.stack([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])
