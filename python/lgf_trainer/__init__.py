"""Reference trainer: alignment of video diffusion models. It uses only the public names of `lgf_kernels`."""

import importlib
import sys
import types

from .projector import Projector
from .tap import AlignedTransformer, BlockCapture

__all__ = ["AlignedTransformer", "BlockCapture", "Projector"]


class _Moved(types.ModuleType):
    """A module under the name that docs/trainer.md had for it before it moved."""

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__doc__), name)


for _old, _new in {"cache": "data.cache", "video": "data.video", "lora": "generators.lora"}.items():
    sys.modules[f"{__name__}.{_old}"] = _Moved(f"{__name__}.{_old}", f"{__name__}.{_new}")
