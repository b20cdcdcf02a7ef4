"""The command `lgf`, outside the library so that help and completion do not import torch."""

from .main import main, run

__all__ = ["main", "run"]
