"""Which GPUs the library's own kernels run on, for every backend that has some."""

import torch

#: The oldest tensor cores that multiply bfloat16, and asynchronous copies: Ampere's.
OLDEST = (8, 0)


def why_not(kernels: str, device: str) -> str | None:
    """None if this is a GPU that kernels of ours run on, else why not, said of `kernels`."""
    kind = "ROCm" if torch.version.hip else torch.device(device).type
    if kind != "cuda":
        return f"{kernels} run on NVIDIA GPUs, not on {kind} devices"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return "{} need sm_{}{} or newer, this is sm_{}{}".format(kernels, *OLDEST, *capability)
    return None
