"""Cost of one loss and its gradient beside the naive forms: the measurements of `lgf bench` at the demo's size."""

from collections.abc import Callable

from lgf_bench.correctness import step
from lgf_bench.families.gram_flow import LgfKl
from lgf_bench.memory import peak_memory
from lgf_bench.providers import BACKENDS, provider, runnable
from lgf_bench.timing import interleaved, spread

#: About the token grid of CogVideoX at 480 x 720, with few frames and channels.
SHAPE = (1, 5, 30, 40, 64)
LIBRARY = "lgf_kl_loss"


def measure_cost(
    shape: tuple[int, ...] = SHAPE, rounds: int = 5, backend: str | None = None, progress: Callable = iter
) -> dict[str, dict[str, float | None]]:
    """Return median milliseconds, peak MB (None where the system does not tell) and loss by the name of each form."""
    case = LgfKl(shape)
    first = next(name for name in runnable(case) if name in BACKENDS)
    ours = {None: first, "reference": "eager"}.get(backend, backend)  # as `lgf bench` calls them
    forms = {LIBRARY: ours, "F.unfold": "eager-unfold", "loop over shifts": "eager"}
    losses = {name: provider(form, case) for name, form in forms.items()}
    values = {name: step(loss, case.inputs()).item() for name, loss in losses.items()}
    seconds = interleaved(losses, case, progress(range(rounds)))
    costs = {}
    for name, form in forms.items():
        peak = peak_memory(case, form)
        costs[name] = {
            "ms": spread(seconds[name]["both"])["median_ms"],
            "peak_mb": None if peak is None else peak / 1e6,
            "loss": values[name],
        }
    return costs
