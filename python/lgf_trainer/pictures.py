"""Drawing motion over frames, and figures as PNG bytes."""

import io

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor


def draw_arrows(axes, motion: Tensor, drawn: Tensor, token: int = 8) -> None:
    """Displacements (H, W, 2) as arrows from the centres of the tokens where `drawn`; black with a white rim.

    Args:
        axes: of matplotlib, in pixels.
        motion: (dy, dx) in tokens.
        drawn: (H, W) bool.
        token: pixels along one side of a token.
    """
    y, x = (drawn.nonzero().T + 0.5) * token
    dy, dx = (motion[drawn] * token).T
    width = 0.11 / motion.shape[1]  # of the axes
    arrows = axes.quiver(
        *(values.numpy() for values in (x, y, dx, dy)),
        color="black",
        angles="xy",
        scale_units="xy",
        scale=1,
        width=width,
        headwidth=3.4,
    )
    arrows.set_path_effects([withStroke(linewidth=32 / motion.shape[1], foreground="white")])


def faded(frame: Tensor) -> np.ndarray:
    """A frame (3, h, w) in [-1, 1] as an image (h, w, 3), lightened so that arrows stand out."""
    return (0.35 + 0.65 * (frame + 1) / 2).permute(1, 2, 0).numpy()


def flow_colours(motion: Tensor, reach: float) -> np.ndarray:
    """Displacements (..., 2) as colours (..., 3) in [0, 1]: the hue is the direction, white is none, pure is `reach`."""
    dy, dx = motion.unbind(-1)
    hue = (torch.atan2(dy, dx) / (2 * torch.pi)) % 1
    strength = (motion.norm(dim=-1) / reach).clamp(max=1)
    return hsv_to_rgb(torch.stack([hue, strength, torch.ones_like(hue)], -1).numpy())


def png(figure: Figure, transparent: bool = False) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, transparent=transparent)
    return buffer.getvalue()
