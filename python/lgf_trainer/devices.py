"""Which device a command runs on."""

import torch

from .errors import TrainerError


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
        reason = str(error).strip().splitlines()[0]
        raise TrainerError(
            f"--device {name} cannot be used here ({reason}). Leave it out to take what there is"
        ) from error
