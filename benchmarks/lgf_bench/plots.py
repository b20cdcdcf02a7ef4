"""Pictures of the sweeps: time and memory against size on logarithmic axes, with the floor drawn in."""

from pathlib import Path

from matplotlib.figure import Figure

from .sweeps import milliseconds, peaks

COLOURS = {"eager": "#999999", "compile": "#e69f00", "portable": "#56b4e9", "native": "#0072b2", "triton": "#009e73"}


def draw(file: Path, title: str, quantity: str, curves: dict[str, list[dict]]) -> None:
    """Draw one picture of one sweep; of time alone, if memory was not measured."""
    measured = any(map(peaks, curves.values()))
    panels = 1 + measured
    figure = Figure(figsize=(4.5 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)
    time, memory = axes[0, 0], axes[0, -1]
    longest = max(curves.values(), key=len)
    sizes = [row["size"] for row in longest]
    for provider, curve in curves.items():
        style = {"marker": "o", "markersize": 3.5, "color": COLOURS.get(provider), "label": provider}
        time.plot(*zip(*milliseconds(curve), strict=True), **style)
        if measured:
            memory.plot([size for size, _ in peaks(curve)], [peak / 2**20 for _, peak in peaks(curve)], **style)
            memory.set(title="peak memory", ylabel="MiB")
    floor = [row["floor_ms"]["both"] for row in longest]
    time.plot(sizes, floor, color="black", linestyle="--", linewidth=1, label="floor")
    time.set(title="forward + backward", ylabel="milliseconds")
    for panel in axes[0]:
        panel.set(xscale="log", yscale="log", xlabel=quantity)
        panel.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    time.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
