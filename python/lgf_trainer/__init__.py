"""Reference trainer: LGF alignment of CogVideoX. It uses only the public names of `lgf_kernels`."""

from .aligned import AlignedTransformer
from .capture import BlockCapture
from .projector import Projector

__all__ = ["AlignedTransformer", "BlockCapture", "Projector"]
