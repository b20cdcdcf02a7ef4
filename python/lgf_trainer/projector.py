"""The projectors: from diffusion features to the teacher's space."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

#: Frames for each latent behind the first.
FACTOR = 4


class Projector(nn.Module):
    """A residual temporal convolution and a pointwise MLP, the head of SAM2VideoX (section 4.1 and appendix A).

        x = conv_1x1x1(features)                          in_channels -> hidden
        x = interpolate(x, frames)                        over time, end frames aligned: latent i <-> frame 4i
        x = x + SiLU(GN(conv_3x1x1(x)))
        x = conv_1x1x1 (GN SiLU conv_1x1x1)*              hidden -> widths[0] -> ... -> widths[-1], last layer bare

    The paper says: an interpolation by a factor of 4, a skip connection with a kernel of (3, 1, 1) and 768 channels, widths
    of 768, 512, 256, 256, and SiLU and GroupNorm across all layers. Where 3072 channels become 768 it does not say, four
    times 13 latents are not 49 frames, and behind a SiLU features lie in one corner of the space in which cosines compare
    them. The other readings are options.

    Args:
        in_channels: channels of the diffusion features (3072 for CogVideoX-5B, 1920 for 2B).
        hidden: channels of the temporal part.
        widths: output channels of the pointwise layers; the last is the teacher-side feature size.
        frames: frames to put out (49 for a 49-frame video); None keeps those of the input.
        groups: groups of every GroupNorm; must divide `hidden` and all `widths` but the last ("normalised": that, too).
        interpolation: "frames" (default) to as many as are needed. "factor": by 4, without the first 3, so that latent i
            stands for the frames 4i - 3 to 4i that the VAE made it of, and the first latent for the first frame.
        last: "bare" (default), or "normalised": GroupNorm and SiLU behind the last layer, too.
        stem: "ours" (default), or "none": the convolution over time brings `in_channels` to `hidden` itself, with nothing
            beside it.

    Raises:
        ValueError: `interpolation="factor"` cannot give so many frames.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int = 768,
        widths: Sequence[int] = (512, 256, 256),
        frames: int | None = None,
        groups: int = 32,
        interpolation: Literal["frames", "factor"] = "frames",
        last: Literal["bare", "normalised"] = "bare",
        stem: Literal["ours", "none"] = "ours",
    ):
        super().__init__()
        self.frames, self.interpolation = frames, interpolation
        self.stem = nn.Conv3d(in_channels, hidden, 1) if stem == "ours" else None
        self.temporal = nn.Sequential(
            nn.Conv3d(hidden if stem == "ours" else in_channels, hidden, (3, 1, 1), padding=(1, 0, 0)),
            nn.GroupNorm(groups, hidden),
            nn.SiLU(),
        )
        layers: list[nn.Module] = [nn.Conv3d(hidden, widths[0], 1)]
        for width, wider in zip(widths[1:], widths[:-1], strict=True):
            layers += [nn.GroupNorm(groups, wider), nn.SiLU(), nn.Conv3d(wider, width, 1)]
        if last == "normalised":
            layers += [nn.GroupNorm(groups, widths[-1]), nn.SiLU()]
        self.mlp = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, H, W, in_channels) -> (B, frames or T, H, W, widths[-1])."""
        x = features.permute(0, 4, 1, 2, 3)
        if self.stem is None:
            x = self.temporal(self.interpolated(x))
        else:
            x = self.interpolated(self.stem(x))
            x = x + self.temporal(x)
        return self.mlp(x).permute(0, 2, 3, 4, 1).contiguous()

    def interpolated(self, x: Tensor) -> Tensor:
        """Return (B, C, frames, H, W) of (B, C, T, H, W)."""
        latents = x.shape[2]
        if self.frames in (None, latents):
            return x
        if self.interpolation == "frames":
            return interpolate(x, size=(self.frames, *x.shape[3:]), mode="trilinear", align_corners=True)
        if self.frames != FACTOR * latents - (FACTOR - 1):
            raise ValueError(
                f'Projector: interpolation="factor" makes {FACTOR * latents - (FACTOR - 1)} frames of {latents} latents, and '
                f'{self.frames} are needed. Use interpolation="frames".'
            )
        return interpolate(x, scale_factor=(float(FACTOR), 1.0, 1.0), mode="trilinear")[:, :, FACTOR - 1 :]


class RelationHead(nn.Module):
    """Layers on the latents, then twice as many frames and fewer tokens: the head of VideoREPA and of MoAlign.

        x = features without the first latent, which stands for one frame and not for four
        x = SiLU(conv_3x1x1(x)); x = SiLU(conv_1x1x1(x)); ...     "conv": MoAlign, appendix A.4
        x = linear(SiLU(linear(x))) ...                           "mlp": VideoREPA's public code
        x = interpolate(x, twice the frames)                      trilinear, corners not aligned
        x = conv_kxk(x, stride k) of every frame                  k = reduction

    With 13 latents of 30 x 45 tokens it puts out 24 frames of 10 x 15, those of VideoMAE on the frames 1 to 48. Where the
    papers leave it open (first latent, corners, channels of the last layer), this is VideoREPA's code.

    Args:
        in_channels: channels of the diffusion features.
        widths: output channels of the layers (MoAlign: 256, 64; VideoREPA: 2048, 2048, 768).
        layers: which of the two.
        reduction: rows and columns of tokens for one that it puts out.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], layers: Literal["conv", "mlp"], reduction: int = 3):
        super().__init__()
        self.activate_last = layers == "conv"
        ins = (in_channels, *widths[:-1])
        self.layers = nn.ModuleList(nn.Conv3d(*io, 1) for io in zip(ins, widths, strict=True))
        if layers == "conv":
            self.layers[0] = nn.Conv3d(in_channels, widths[0], (3, 1, 1), padding=(1, 0, 0))
        self.reduce = nn.Conv2d(widths[-1], widths[-1], reduction, reduction)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, H, W, in_channels) -> (B, 2 (T - 1), H // reduction, W // reduction, widths[-1])."""
        x = features[:, 1:].permute(0, 4, 1, 2, 3)
        for layer in self.layers[:-1]:
            x = silu(layer(x))
        x = self.layers[-1](x)
        x = interpolate(silu(x) if self.activate_last else x, scale_factor=(2.0, 1.0, 1.0), mode="trilinear")
        x = self.reduce(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(x), -1))
        return x.permute(0, 1, 3, 4, 2).contiguous()


class TokenMlp(nn.Sequential):
    """Linear layers with SiLU between them, of every token alone: the head of REPA.

    REPA has three layers of 2048, 2048 and the encoder's channels (`build_mlp` of its public code); Align4Gen says "a
    lightweight MLP" shared by all patches and no more.

    Args:
        in_channels: channels of the diffusion features.
        widths: output channels of the layers.

    Shapes: (B, T, H, W, in_channels) -> (B, T, H, W, widths[-1]).
    """

    def __init__(self, in_channels: int, widths: Sequence[int]):
        layers: list[nn.Module] = [nn.Linear(in_channels, widths[0])]
        for width, wider in zip(widths[1:], widths[:-1], strict=True):
            layers += [nn.SiLU(), nn.Linear(wider, width)]
        super().__init__(*layers)
