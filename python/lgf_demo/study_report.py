"""Page and picture of the study, functions of its rows alone."""

from importlib import resources
from pathlib import Path
from statistics import mean

import matplotlib
from lgf_bench import results
from lgf_trainer.evaluation.pictures import png
from matplotlib.figure import Figure

from . import model
from .experiment import NOISE_STEPS, SHOWN_STEP
from .losses import LOSSES
from .pictures import INK, STYLE
from .study import BEFORE, COSTS, REFERENCE, RUNS, Settings

PAGE, PICTURE = "which-loss.md", "which-loss.png"
#: Share of the error of no motion above which a reading has found nothing.
NOTHING = 0.95
HEADING = (
    "alignment loss", "source, its weight", "weight here", "EPE, read by LGF", "EPE, linear probe", "diffusion loss",
    "time", "peak memory",
)  # fmt: skip


def runs_by_loss(folder: Path, settings: Settings) -> dict[str, list[dict]]:
    """Return the rows of the settings' runs by loss, one for each seed."""
    found: dict[str, dict[int, dict]] = {}
    for row in results.read(folder / RUNS):
        if settings.key(row.get("loss"), row.get("seed")).items() <= row.items() and row["seed"] in settings.seeds:
            found.setdefault(row["loss"], {})[row["seed"]] = row
    return {name: [by_seed[seed] for seed in sorted(by_seed)] for name, by_seed in found.items()}


def costs_by_loss(folder: Path, settings: Settings) -> dict[str, dict]:
    """Return the row of each loss's cost."""
    rows = results.read(folder / COSTS)
    return {row["loss"]: row for row in rows if settings.cost_key(row.get("loss")).items() <= row.items()}


def table(runs: dict[str, list[dict]], costs: dict[str, dict]) -> list[list[str]]:
    """Return rows of text, the header first: what is known without training, then the losses in their order."""
    rows = [list(HEADING)]
    before = runs.get(BEFORE, [])
    for name in before[0]["context"] if before else ():
        rows.append([name, "", "", spread([row["context"][name] for row in before]), "", "", "", ""])
    for name in (BEFORE, *LOSSES):
        if name in runs:
            rows.append(_row(name, runs[name], costs.get(name)))
    return rows


def _row(name: str, rows: list[dict], cost: dict | None) -> list[str]:
    label, source = (LOSSES[name].label, LOSSES[name].source) if name in LOSSES else (name, "")
    weight = mean(row.get("weight", 0) for row in rows)
    measures = [spread([row[measure] for row in rows]) for measure in ("epe", "probe_epe", "diffusion")]
    time = f"{cost['median_ms']:.1f} ms" if cost else ""
    memory = f"{cost['peak_bytes'] / 2**20:.1f} MiB" if cost and cost["peak_bytes"] is not None else ""
    return [label, source, f"{weight:.3g}" if weight else "", *measures, time, memory]


def spread(values: list[float]) -> str:
    """Return mean, least and largest."""
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def markdown(rows: list[list[str]]) -> str:
    """Return a table of Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def page(runs: dict[str, list[dict]], costs: dict[str, dict], settings: Settings) -> str:
    """Return the whole page."""
    rows = [row for of_loss in runs.values() for row in of_loss]
    last = max(rows, key=lambda row: row["run"])
    versions = f"lgf-kernels {last['lgf_kernels']}, torch {last['torch']}, Python {last['python']}, {last['device']}"
    text = resources.files(__package__).joinpath(PAGE).read_text(encoding="utf-8")
    return text.format(
        command=last["command"], runs=RUNS, costs=COSTS, picture=PICTURE,
        blocks=model.BLOCKS, width=model.WIDTH, rank=model.LORA_RANK,
        seeds=len(settings.seeds), steps=settings.steps, train=settings.train_clips, held_out=settings.held_out_clips,
        grid=_product(settings.grid), cost_shape=_product(settings.cost_shape), reference=LOSSES[REFERENCE].source,
        table=markdown(table(runs, costs)).rstrip(), outcome=outcome(runs), versions=versions, threads=last["threads"],
        noise_step=SHOWN_STEP, noise_steps=", ".join(map(str, NOISE_STEPS)),
    )  # fmt: skip


def outcome(runs: dict[str, list[dict]]) -> str:
    """Return, for both readings of motion, which losses lie below training without one, and which are apart from the best."""
    lines = []
    for measure, words in (("epe", "read by LGF"), ("probe_epe", "by the linear probe")):
        values = {name: [row[measure] for row in rows] for name, rows in runs.items() if name in LOSSES}
        best = min(values, key=lambda name: mean(values[name]))
        level = [LOSSES[n].label for n in values if n != best and min(values[n]) <= max(values[best])]
        line = f"Motion {words}: the least error has {LOSSES[best].label}, {spread(values[best])}. "
        line += f"Ranges that overlap with it: {', '.join(level)}." if level else "No other range overlaps with it."
        if without := values.get("none"):
            helped = [LOSSES[name].label for name in values if max(values[name]) < min(without)]
            line += f" Below every seed of training without alignment in every seed: {', '.join(helped) or 'none'}."
        still = mean(row["context"]["no motion"] for row in runs[BEFORE]) if BEFORE in runs else float("inf")
        if min(map(mean, values.values())) > NOTHING * still:
            line += f" No mean is {1 - NOTHING:.0%} below that of no motion: this reading finds next to none in any of them."
        lines.append(f"- {line}")
    return "\n".join(lines)


def _product(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def picture(runs: dict[str, list[dict]], costs: dict[str, dict]) -> bytes:
    """Return a PNG: both end-point errors of every seed with their means, and time and memory of the losses."""
    names = [name for name in (BEFORE, *LOSSES) if name in runs]
    labels = [LOSSES[name].label if name in LOSSES else name for name in names]
    before = runs.get(BEFORE, [])
    still = mean(row["context"]["no motion"] for row in before) if before else None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 0.38 * len(names) + 1.4), layout="constrained")
        read, probe, cost = figure.subplots(1, 3, sharey=True, width_ratios=(3, 3, 2))
        for axes, measure in ((read, "epe"), (probe, "probe_epe")):
            for y, name in enumerate(names):
                values = [row[measure] for row in runs[name]]
                axes.plot(values, [y] * len(values), "o", color="#4c7fd9", alpha=0.5, markersize=5)
                axes.plot(mean(values), y, "|", color="#2f9e77", markersize=16, markeredgewidth=3)
            if still is not None:
                axes.axvline(still, color=INK, linestyle=":", linewidth=1.2)
            axes.grid(axis="x", alpha=0.3)
        read.set_title("end-point error, read by LGF (tokens)", fontsize=10)
        probe.set_title("end-point error, linear probe (tokens)", fontsize=10)
        for y, name in enumerate(names):
            if name in costs:
                cost.plot(costs[name]["median_ms"], y, "s", color="#e08a2e", markersize=6)
                peak = costs[name]["peak_bytes"]
                memory = "" if peak is None else f"  {peak / 2**20:.0f} MiB"
                cost.annotate(memory, (costs[name]["median_ms"], y), va="center", fontsize=8, color=INK)
        cost.set_xscale("log")
        cost.margins(x=0.35)
        cost.set_title("time (ms) and memory of the loss", fontsize=10)
        read.set_yticks(range(len(names)), labels)
        read.invert_yaxis()
        figure.supxlabel("points: seeds; bars: their mean; dotted: the assumption of no motion", fontsize=9, color=INK)
        return png(figure, transparent=True)
