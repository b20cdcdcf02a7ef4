"""Options of the Local Gram Flow losses, checked once and passed on as one tuple."""

from collections.abc import Sequence
from typing import NamedTuple

from ..core.checks import REDUCTIONS, choice, integer, scale

SIMILARITIES = ("cosine", "dot")
BOUNDARIES = ("exclude", "zero")
DIVERGENCES = ("kl", "l2")
DIRECTIONS = ("forward", "backward", "both")

#: Largest window of all backends: kernels keep a token's K*K logits in registers.
MAX_WINDOW = 15


class LgfOptions(NamedTuple):
    """The options of a Local Gram Flow loss that are not tensors, as documented in `lgf_kernels.lgf_kl_loss`."""

    window: int = 7
    temperature: float = 0.1
    similarity: str = "cosine"
    boundary: str = "exclude"
    divergence: str = "kl"
    direction: str = "forward"
    reduction: str = "mean"

    @property
    def radius(self) -> int:
        return self.window // 2

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions to compute: "both" is the mean of the two."""
        return ("forward", "backward") if self.direction == "both" else (self.direction,)

    def facts(self) -> dict[str, object]:
        """Return what decides which kernel runs: all but the temperature, which a compiled function may have as a symbol."""
        return {name: value for name, value in self._asdict().items() if name != "temperature"}


def checked_window(function: str, value) -> int:
    K = integer(function, "window", value)
    if K < 1 or K % 2 == 0 or K > MAX_WINDOW:
        raise ValueError(
            f"{function}: `window` must be odd and between 1 and {MAX_WINDOW}, so that it has a centre and its logits fit "
            f"in a kernel's registers; got {K}. The paper uses 7."
        )
    return K


def checked_options(
    function: str, directions: Sequence[str] = DIRECTIONS, direction_hint: str = "", **given
) -> LgfOptions:
    """Check the options of a Local Gram Flow operator; those not given keep their defaults."""
    tests = {
        "window": lambda v: checked_window(function, v),
        "temperature": lambda v: scale(function, "temperature", v),
        "similarity": lambda v: choice(function, "similarity", v, SIMILARITIES),
        "boundary": lambda v: choice(function, "boundary", v, BOUNDARIES),
        "divergence": lambda v: choice(function, "divergence", v, DIVERGENCES),
        "direction": lambda v: choice(function, "direction", v, directions, direction_hint),
        "reduction": lambda v: choice(function, "reduction", v, REDUCTIONS),
    }
    return LgfOptions(**{name: tests[name](value) for name, value in given.items()})
