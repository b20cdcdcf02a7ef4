"""Error for mistakes that the user can correct."""

import errno

from lgf_cli.errors import UserError


class TrainerError(UserError):
    """Error for invalid input or environment of the trainer."""


def in_short(error: Exception) -> str:
    """Return the message of a library's error, short enough for one line."""
    return " ".join(str(error).split())[:200].rstrip(".")


def is_disk_full(error: Exception) -> bool:
    """Return whether an error says that the disk is full, safetensors' too, which keeps no error number."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
