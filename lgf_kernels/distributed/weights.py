"""Token weights of a mean over the tokens of all processes."""

import torch
from torch import Tensor

from ..core import checks
from ..core.autograd import check_where_readable
from ..core.numerics import relative_weight
from .exchange import largest_of_all


def shared_weight(function: str, token_weight, dtype: torch.dtype, reduction: str, group) -> Tensor | None:
    """Return the weights of this process's tokens as the losses use them, relative to the largest of all processes."""
    if token_weight is None:
        return None
    checks.real(function, "token_weight", checks.tensor(function, "token_weight", token_weight))
    checks.detached(function, "token_weight", token_weight)
    check_where_readable(checks.nonnegative, function, "token_weight", token_weight)
    return relative_weight(token_weight, dtype, reduction, lambda weight: largest_of_all(weight, group))
