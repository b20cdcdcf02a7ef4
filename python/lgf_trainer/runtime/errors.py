"""Mistakes that are the user's to mend."""

import errno

from lgf_cli.errors import UserError


class TrainerError(UserError):
    """Bad input or bad surroundings of the trainer."""


def in_short(error: Exception) -> str:
    """What a library's error says, fit to stand in a line of ours."""
    return " ".join(str(error).split())[:200].rstrip(".")


def is_disk_full(error: Exception) -> bool:
    """Also where safetensors reports it, which keeps no error number."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
