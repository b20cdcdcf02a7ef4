"""Pictures of the sweeps: time and memory against size on logarithmic axes, with the floor drawn in."""

from pathlib import Path

from .errors import UserError
from .sweeps import Curve

COLOURS = {"eager": "#999999", "compile": "#e69f00", "portable": "#56b4e9", "native": "#0072b2", "triton": "#009e73"}


def pyplot():
    try:
        import matplotlib
    except ImportError:
        raise UserError('plots need matplotlib. Get it with: pip install "lgf-kernels[bench]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(file: Path, title: str, quantity: str, curves: dict[str, Curve]) -> None:
    """One picture of one sweep."""
    figure, (time, memory) = pyplot().subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for provider, curve in curves.items():
        style = {"marker": "o", "markersize": 3.5, "color": COLOURS.get(provider), "label": provider}
        time.plot(curve.sizes, curve.milliseconds, **style)
        known = [(size, peak / 2**20) for size, peak in zip(curve.sizes, curve.bytes, strict=True) if peak]
        memory.plot(*zip(*known, strict=True) if known else ([], []), **style)
    longest = max(curves.values(), key=lambda curve: len(curve.sizes))
    time.plot(longest.sizes, longest.floor_ms, color="black", linestyle="--", linewidth=1, label="floor")
    time.set(title="forward + backward", ylabel="milliseconds")
    memory.set(title="peak memory", ylabel="MiB")
    for axes in (time, memory):
        axes.set(xscale="log", yscale="log", xlabel=quantity)
        axes.set_xticks(longest.sizes, [str(size) for size in longest.sizes], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    time.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    pyplot().close(figure)
