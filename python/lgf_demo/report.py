"""Output of the demo: a table on the terminal, `report.html` in one file, and `motion.png`."""

import base64
from importlib import resources

from jinja2 import Environment

from .experiment import NOISE_STEPS, PROJECTOR_ROW, RAW_ROWS, SHOWN_STEP, Outcome, Task

Cost = dict[str, dict[str, float | None]]


def result_table(task: Task, outcome: Outcome, noise_step: int = SHOWN_STEP) -> list[list[str]]:
    """Return rows of text, the header first: context, raw features in the three states, projector."""
    rows = [["held-out clips", *task.measures]]
    for name, scores in task.context.items():
        rows.append([name, *(f"{scores[m]:.2f}" if m in scores else "-" for m in task.measures)])
    for name in (*RAW_ROWS.values(), PROJECTOR_ROW):
        rows.append([name, *(f"{outcome.scores[name][noise_step][m]:.2f}" for m in task.measures)])
    return rows


def cost_table(cost: Cost) -> list[list[str]]:
    """Return rows of text, the header first: time and peak memory of every form."""
    rows = [["one loss and its gradient", "time (ms)", "peak memory (MB)"]]
    for name, figures in cost.items():
        peak = "-" if figures["peak_mb"] is None else f"{figures['peak_mb']:.0f}"
        rows.append([name, f"{figures['ms']:.0f}", peak])
    return rows


def render_html(task: Task, outcome: Outcome, cost: Cost, pictures: dict[str, bytes], facts: dict[str, object]) -> str:
    """Return the report as one self-contained page.

    Args:
        pictures: name -> PNG.
        facts: what the template names: title, intro, seed, steps, command, versions and the like.
    """
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            results=result_table(task, outcome),
            cost=cost_table(cost),
            by_noise=[_noise_table(task, outcome, measure) for measure in task.measures],
            pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
            shown_step=SHOWN_STEP,
            **facts,
        )
    )


def _noise_table(task: Task, outcome: Outcome, measure: str) -> list[list[str]]:
    rows = [[f"{measure} at noise step", *map(str, NOISE_STEPS)]]
    for name in (*RAW_ROWS.values(), PROJECTOR_ROW):
        rows.append([name, *(f"{outcome.scores[name][step][measure]:.3f}" for step in NOISE_STEPS)])
    return rows
