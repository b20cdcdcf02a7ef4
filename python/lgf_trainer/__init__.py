"""Reference trainer: alignment of video diffusion models. It uses only the public names of `lgf_kernels`."""

import importlib
import sys
import types

__all__ = ["AlignedTransformer", "BlockCapture", "Projector"]


def __getattr__(name: str) -> object:
    """Import a public class when it is asked for: the command line needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".projector" if name == "Projector" else ".tap", __name__), name)


class _Moved(types.ModuleType):
    """A module under the name that docs/trainer.md had for it before it moved."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # asked by `inspect`, of all modules, for a warning's place in the code
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__doc__), name)


for _old, _new in {"cache": "data.cache", "video": "data.video", "lora": "generators.lora"}.items():
    sys.modules[f"{__name__}.{_old}"] = _Moved(f"{__name__}.{_old}", f"{__name__}.{_new}")
