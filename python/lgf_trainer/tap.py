"""A diffusion transformer and its projector as one module."""

from torch import Tensor, nn


class AlignedTransformer(nn.Module):
    """A CogVideoX transformer whose block `block` feeds a projector.

    One module holds both, so that DDP, FSDP and `torch.compile` see one forward pass that reaches every trained
    parameter.

    Args:
        transformer: a `CogVideoXTransformer3DModel`, plain or with PEFT adapters.
        projector: maps (B, T, H, W, C) to what is compared with the teacher. None: there is nothing to compare.
        block: 0-based index of the aligned block. The paper's "25th block" is 24.
    """

    def __init__(self, transformer: nn.Module, projector: nn.Module | None, block: int):
        super().__init__()
        self.transformer = transformer
        self.projector = projector
        self._capture = BlockCapture(transformer.transformer_blocks[block])

    def forward(self, hidden_states: Tensor, **inputs) -> tuple[Tensor, Tensor | None]:
        """(prediction, projected) for latents (B, F, C, h, w); `inputs` go to the transformer as they are."""
        prediction, features = self.predict_and_capture(hidden_states, **inputs)
        return prediction, self.projector(features) if self.projector else None

    def predict_and_capture(self, hidden_states: Tensor, **inputs) -> tuple[Tensor, Tensor]:
        """(prediction, raw features of the aligned block (B, T, H, W, C) on the grid of video tokens)."""
        self._capture.arm()
        prediction = self.transformer(hidden_states, return_dict=False, **inputs)[0]
        features = self._capture.take()
        return prediction, features.unflatten(1, self._token_grid(hidden_states))

    def _token_grid(self, hidden_states: Tensor) -> tuple[int, int, int]:
        frames, _, height, width = hidden_states.shape[1:]
        config = self.transformer.config
        return frames // (config.patch_size_t or 1), height // config.patch_size, width // config.patch_size


class BlockCapture:
    """Captures the video tokens that a CogVideoX block puts out.

    A block returns `(hidden, encoder_hidden)` with the text already split off, so `hidden` holds the video tokens,
    time-major. Gradient checkpointing runs the block again in the backward pass; only the first call after `arm()`
    counts, so that the captured tensor is the one the rest of the forward pass has used.

        capture = BlockCapture(transformer.transformer_blocks[24])
        capture.arm()
        transformer(...)
        hidden = capture.take()                     # (B, tokens, channels), part of the autograd graph
    """

    def __init__(self, block: nn.Module):
        self._armed = False
        self._hidden: Tensor | None = None
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

    def _keep(self, _block: nn.Module, _args: tuple, output: tuple[Tensor, Tensor]) -> None:
        if self._armed:  # returning None leaves the block's output as it is
            self._armed, self._hidden = False, output[0]
