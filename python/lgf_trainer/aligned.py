"""A diffusion transformer and its projector as one module."""

from torch import Tensor, nn

from .capture import BlockCapture


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
