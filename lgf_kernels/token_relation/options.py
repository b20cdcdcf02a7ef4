"""Options of token relation losses, checked once and passed on as one tuple."""

from typing import NamedTuple

import torch

from ..core import checks

DISTANCES = ("l1", "l2")
NEGATIVES = ("keep", "clamp", "clamp-teacher")
SIMILARITIES = ("cosine", "dot")

#: Of what kernels take as a float32. It forgives every difference that a larger margin would.
LARGEST_MARGIN = torch.finfo(torch.float32).max


class RelationOptions(NamedTuple):
    """The options of a token relation loss that are not tensors, as documented in `lgf_kernels.token_relation_loss`."""

    margin: float = 0.0
    distance: str = "l1"
    negatives: str = "keep"
    similarity: str = "cosine"
    reduction: str = "mean"

    @property
    def squared(self) -> bool:
        return self.distance == "l2"

    @property
    def cosine(self) -> bool:
        return self.similarity == "cosine"

    @property
    def clamps_student(self) -> bool:
        return self.negatives == "clamp"

    @property
    def clamps_teacher(self) -> bool:
        return self.negatives != "keep"

    def facts(self) -> dict[str, object]:
        """Return what decides which kernel runs: all but the margin, which a compiled function may have as a symbol."""
        return {name: value for name, value in self._asdict().items() if name != "margin"}


def checked_options(function: str, **given) -> RelationOptions:
    """Check the options of a token relation loss; those not given keep their defaults."""
    tests = {
        "margin": lambda v: min(checks.number(function, "margin", v, minimum=0.0), LARGEST_MARGIN),
        "distance": lambda v: checks.choice(function, "distance", v, DISTANCES),
        "negatives": lambda v: checks.choice(function, "negatives", v, NEGATIVES),
        "similarity": lambda v: checks.choice(function, "similarity", v, SIMILARITIES),
        "reduction": lambda v: checks.choice(function, "reduction", v, checks.REDUCTIONS),
    }
    options = RelationOptions(**{name: tests[name](value) for name, value in given.items()})
    if options.squared and options.margin > 0:
        raise ValueError(
            f'{function}: `margin` must be 0 with distance="l2", where small differences count little anyway and no '
            f'published loss forgives them; got {options.margin!r}. Leave it out, or use distance="l1".'
        )
    return options
