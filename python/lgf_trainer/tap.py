"""The features of one block, and a transformer and its projector as one module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Grid = tuple[int, int, int]


def video_tokens(output: Any) -> Tensor:
    """The video tokens (B, tokens, channels) in what a block puts out: the tensor itself, or the first of several.

    A CogVideoX block returns a pair and a Wan block one tensor, whose item 0 would be a sample of the batch.
    """
    return output if isinstance(output, Tensor) else output[0]


class BlockCapture:
    """Captures the video tokens that a block puts out.

    A CogVideoX block returns `(hidden, encoder_hidden)` with the text already split off, so `hidden` holds the video
    tokens, time-major; a Wan block returns them alone. Gradient checkpointing runs the block again in the backward pass;
    only the first call after `arm()` counts, so that the captured tensor is the one the rest of the forward pass has used.

        capture = BlockCapture(transformer.transformer_blocks[24])
        capture.arm()
        transformer(...)
        hidden = capture.take()                     # (B, tokens, channels), part of the autograd graph
    """

    def __init__(self, block: nn.Module, tokens: Callable[[Any], Tensor] = video_tokens):
        self._armed = False
        self._hidden: Tensor | None = None
        self._tokens = tokens
        self._handle = block.register_forward_hook(self._keep)

    def arm(self) -> None:
        """Ask for the output of the block's next call."""
        self._armed, self._hidden = True, None

    def take(self) -> Tensor:
        """What was captured since `arm()`; the reference is dropped, so that no graph outlives its step."""
        hidden, self._armed, self._hidden = self._hidden, False, None
        if hidden is None:
            raise RuntimeError("the captured block has not run since arm(): run the transformer before take()")
        return hidden

    def remove(self) -> None:
        """Detach from the block."""
        self._handle.remove()

    def _keep(self, _block: nn.Module, _args: tuple, output: Any) -> None:
        if self._armed:  # returning None leaves the block's output as it is
            self._armed, self._hidden = False, self._tokens(output)


class AlignedTransformer(nn.Module):
    """A transformer whose block `block` feeds a projector.

    One module holds both, so that DDP, FSDP and `torch.compile` see one forward pass that reaches every trained
    parameter.

    Args:
        transformer: plain or with PEFT adapters.
        projector: maps (B, T, H, W, C) to what is compared with the teacher. None: there is nothing to compare.
        block: the aligned block, or its 0-based index in `transformer.transformer_blocks`. The paper's "25th block" is 24.
        grid_of: (shape of the hidden states, other inputs) -> (T, H, W) tokens; default: that of CogVideoX, for latents
            (B, F, C, h, w).
        tokens: what a block puts out -> its video tokens.
        context: the processes over which the transformer's tokens are spread (`runtime.context.Context`).
    """

    def __init__(
        self,
        transformer: nn.Module,
        projector: nn.Module | None,
        block: nn.Module | int,
        grid_of: Callable[[torch.Size, dict[str, Any]], Grid] | None = None,
        tokens: Callable[[Any], Tensor] = video_tokens,
        context: Any = None,
    ):
        super().__init__()
        self._context = context
        self.transformer = transformer
        self.projector = projector
        self._grid_of = self._cogvideox_grid if grid_of is None else grid_of
        self._capture = BlockCapture(transformer.transformer_blocks[block] if isinstance(block, int) else block, tokens)

    def forward(self, hidden_states: Tensor, **inputs) -> tuple[Tensor, Tensor | None]:
        """(prediction, projected) for the transformer's hidden states; `inputs` go to it as they are."""
        prediction, features = self.predict_and_capture(hidden_states, **inputs)
        return prediction, None if self.projector is None else self.projector(features)

    def predict_and_capture(self, hidden_states: Tensor, **inputs) -> tuple[Tensor, Tensor]:
        """(prediction, raw features of the aligned block (B, T, H, W, C) on the grid of video tokens)."""
        self._capture.arm()
        prediction = self.transformer(hidden_states, return_dict=False, **inputs)[0]
        features = self._capture.take()
        if self._context is not None:
            prediction, features = self._context.scaled(prediction), self._context.whole(features)
        return prediction, features.unflatten(1, self._grid_of(hidden_states.shape, inputs))

    def trained(self, transformer: str) -> dict[str, list[nn.Parameter]]:
        """Return group -> what is trained in it; `transformer` is the name of the transformer's group."""
        parts = {transformer: self.transformer, "projector": self.projector}
        return {
            name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items() if part is not None
        }

    def _cogvideox_grid(self, shape: torch.Size, _inputs: dict[str, Any]) -> Grid:
        frames, _, height, width = shape[1:]
        config = self.transformer.config
        return frames // (config.patch_size_t or 1), height // config.patch_size, width // config.patch_size
