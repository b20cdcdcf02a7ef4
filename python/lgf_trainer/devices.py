"""Which device a command runs on, and which of several processes it is."""

from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from .errors import TrainerError, in_short

if TYPE_CHECKING:
    from accelerate import PartialState


def this_process() -> "PartialState":
    """This process among those of `accelerate launch`; alone if there are no others."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without a GPU it takes several processes for one, unless it is told.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # They meet only at the end, and one may have got much longer videos than another.
    return PartialState(cpu, timeout=timedelta(days=30))


def choose_device(name: str, default: torch.device | None = None) -> torch.device:
    """The device called `name`. "auto": `default`, or else the first GPU, or else the CPU.

    Raises:
        TrainerError: there is no such device here.
    """
    if name == "auto":
        return default or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainerError(
            f"--device {name} cannot be used here ({in_short(error)}). Leave it out to take what there is"
        ) from error
