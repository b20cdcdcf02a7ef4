"""The command `lgf`, apart from the library so that help and completion need not wait for torch."""

from .main import main, run

__all__ = ["main", "run"]
