"""Taking the features of one transformer block out of a forward pass."""

from torch import Tensor, nn


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
