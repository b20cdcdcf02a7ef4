"""The options of the Local Gram Flow losses, as the operators pass them on: checked once, then carried whole."""

from typing import NamedTuple

SIMILARITIES = ("cosine", "dot")
BOUNDARIES = ("exclude", "zero")
DIVERGENCES = ("kl", "l2")
DIRECTIONS = ("forward", "backward", "both")
REDUCTIONS = ("mean", "sum", "none")

#: Largest window any backend takes: kernels keep a token's K*K logits in registers.
MAX_WINDOW = 15


class LgfOptions(NamedTuple):
    """Everything of a Local Gram Flow loss that is not a tensor. The meanings are those of `lgf_kernels.lgf_kl_loss`."""

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
