"""Flow matching: noise levels, and noisy latents with their target.

Computed by hand in float32: diffusers' schedulers look noise levels up in lists of their own.
"""

import torch
from torch import Tensor

STEPS = 1000.0  # transformers are told the noise level in thousandths


def noise_level(rng: torch.Generator) -> Tensor:
    """Return a noise level between 0 and 1 whose logit is normal."""
    return torch.randn((), generator=rng).sigmoid()


def shifted(level: Tensor, shift: float) -> Tensor:
    """Return a noise level between 0 and 1 moved towards noise, in thousandths; no rounding (our reading)."""
    return STEPS * shift * level / (1 + (shift - 1) * level)


def noisy_and_target(latents: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Return ((1 - sigma) latents + sigma noise, noise - latents), in float32.

    Args:
        latents, noise: (B, ...).
        timestep: of each sample, or with further dimensions of each token, in thousandths.
    """
    latents, noise = latents.float(), noise.float()
    sigma = (timestep.float() / STEPS)[(...,) + (None,) * (latents.ndim - timestep.ndim)]
    return (1 - sigma) * latents + sigma * noise, noise - latents
