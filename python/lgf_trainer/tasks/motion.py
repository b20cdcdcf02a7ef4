"""MoAlign's first stage: a subspace of video features from which optical flow can be read.

A compressor brings the features of VideoMAE to 64 channels, a decoder makes flow of them, and what must pass through the
narrow place is motion (section 3.2, appendix A.3). The compressor's output is then the teacher of the second stage
(`lgf apply`). What the paper leaves open, and our reading: the output channels of the decoder's first convolution
(64), the padding that doubles exactly, no warm-up, clipping or augmentation, and 1 % of the videos held out.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, l1_loss
from torch.utils.data import Dataset

from ..data.cache import WindowCache
from ..data.samples import EndlessOrder
from ..runtime.errors import TrainerError
from .base import Task


class MotionSubspace(nn.Module):
    """Compressor and decoder.

        M = SiLU(conv_1x1x1(SiLU(conv_3x1x1(S))))        channels -> 256 -> 64
        x = ReLU(conv_2x3x3(M))                          T tokens in time -> T - 1 flows
        x = ReLU(transposed_1x4x4(x)), twice             64 -> 32 -> 16 channels, twice as fine each
        flow = trilinear(conv_3x3x3(x), (T - 1, *size))

    Args:
        channels: of the features S.
        size: height and width of the flow.
    """

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.compressor = nn.Sequential(
            nn.Conv3d(channels, 256, (3, 1, 1), padding=(1, 0, 0)), nn.SiLU(), nn.Conv3d(256, 64, 1), nn.SiLU()
        )
        self.decoder = nn.Sequential(
            nn.Conv3d(64, 64, (2, 3, 3), padding=(0, 1, 1)),
            nn.ReLU(),
            nn.ConvTranspose3d(64, 32, (1, 4, 4), (1, 2, 2), (0, 1, 1)),
            nn.ReLU(),
            nn.ConvTranspose3d(32, 16, (1, 4, 4), (1, 2, 2), (0, 1, 1)),
            nn.ReLU(),
            nn.Conv3d(16, 2, 3, padding=1),
        )

    def compress(self, features: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the subspace, (B, T, H, W, 64)."""
        return self.compressor(features.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, H, W, C) -> flow (B, T - 1, 2, *size)."""
        flow = self.decoder(self.compressor(features.permute(0, 4, 1, 2, 3)))
        return interpolate(flow, (flow.shape[2], *self.size), mode="trilinear").transpose(1, 2)


@dataclass(frozen=True)
class Options:
    """Of the motion subspace."""

    features: str = "videomae"
    """Which features of the cache: features_videomae."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the videos that is not trained on, but looked at whenever the run saves."""


class MotionTask(Task):
    """The L1 distance of flow that is read from the subspace to the cache's `flow`; the end-point error is measured."""

    name = "motion-subspace"
    Options = Options
    losses_named = ("l1", "end_point_error")

    def __init__(self, recipe, cache, accelerator, options):
        super().__init__(recipe, cache, accelerator, options)
        self.features = f"features_{options.features}"
        for name, teacher in ((self.features, options.features), ("flow", "raft")):
            if name not in self.shapes:
                raise TrainerError(
                    f"the windows of {cache.folder} have no {name}, which the motion subspace is made of; they have "
                    f"{', '.join(sorted(self.shapes))}. Extract with lgf extract --teachers {teacher}"
                )
        tokens, flows = self.shapes[self.features], self.shapes["flow"]
        if len(tokens) != 4 or len(flows) != 4 or flows[:2] != (tokens[0] - 1, 2):
            raise TrainerError(
                f"{self.features} of {cache.folder} is {tuple(tokens)} and flow {tuple(flows)}: for (T, rows, columns, channels) "
                "flow is (T - 1, 2, height, width). Extract both anew"
            )
        if recipe.run.shard:
            raise TrainerError(
                "run.shard shards weights, and the motion subspace has less than a million. Leave it out"
            )
        held = [key for key in cache.keys() if is_held_out(key, options.held_out)]
        self.held_out, self.trained_on = held, [key for key in cache.keys() if key not in set(held)]
        if not self.trained_on:
            raise TrainerError(
                f"task_options.held_out {options.held_out} holds out all windows of {cache.folder}. Take a smaller share, or "
                "more videos"
            )

    def make_model(self):
        return MotionSubspace(self.shapes[self.features][-1], tuple(self.shapes["flow"][-2:]))

    def groups(self, model):
        return {"full": (list(model.parameters()), self.recipe.optimisers.full)}

    def samples(self):
        return WindowTensors(self.cache, self.trained_on, (self.features, "flow"), self.recipe.training.seed)

    def losses(self, batch, trained):
        with self.accelerator.autocast():
            flow = self.model(batch[self.features])
        flow, truth = flow.float(), batch["flow"]
        return l1_loss(flow, truth), end_point_error(flow.detach(), truth)

    @torch.no_grad()
    def evaluate(self, model):
        if not self.held_out:
            return {}
        model.eval()
        errors, zeros = [], []
        for key in self.held_out:
            window = self.cache.read(key).tensors
            features, truth = (
                window[name].float()[None].to(self.accelerator.device) for name in (self.features, "flow")
            )
            with self.accelerator.autocast():
                flow = model(features)
            errors.append(end_point_error(flow.float(), truth))
            zeros.append(end_point_error(torch.zeros_like(truth), truth))
        model.train()
        error, zero = (torch.stack(each).mean().item() for each in (errors, zeros))
        return {"held_out/end_point_error": error, "held_out/of_zero_flow": zero}

    @torch.no_grad()
    def apply(self, model, window):
        motion = model.compress(window[self.features].float()[None].to(next(model.parameters()).device))
        return {"features_motion": motion[0].half()}


def end_point_error(flow: Tensor, truth: Tensor) -> Tensor:
    """Return the mean distance of flow (B, T, 2, H, W) to the truth, in pixels."""
    return (flow - truth).norm(dim=2).mean()


def is_held_out(key: str, share: float) -> bool:
    """Return whether a window's video is held out: by the hash of its content, so that all windows of a video are together."""
    digest = hashlib.sha256(key.partition("-")[0].encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class WindowTensors(Dataset):
    """Tensors of windows, every epoch all of them in an order of its own.

    Args:
        cache: of windows.
        keys: of those to take.
        names: of the tensors; in float32.
        seed: of the order.
    """

    def __init__(self, cache: WindowCache, keys: list[str], names: tuple[str, ...], seed: int):
        self.cache, self.names = cache, names
        self.order = EndlessOrder(keys, seed)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        key = self.order[number]
        window = self.cache.read(key).tensors
        try:
            return {name: window[name].float() for name in self.names}
        except KeyError as error:
            raise TrainerError(f"{self.cache.path(key)} has no {error}. Remove it, extract again") from error
