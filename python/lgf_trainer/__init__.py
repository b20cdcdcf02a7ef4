"""Reference trainer: LGF alignment of CogVideoX. It uses only the public names of `lgf_kernels`."""

from .projector import Projector
from .tap import AlignedTransformer, BlockCapture

__all__ = ["AlignedTransformer", "BlockCapture", "Projector"]
