"""Mistakes that are the user's to mend."""

import errno


class TrainerError(ValueError):
    """Bad input or bad surroundings: the message, one line, says what is wrong and what to do.

    The commands print it without a traceback and exit with 1.
    """


def in_short(error: Exception) -> str:
    """What a library's error says, fit to stand in a line of ours."""
    return " ".join(str(error).split())[:200].rstrip(".")


def is_disk_full(error: Exception) -> bool:
    """Also where safetensors reports it, which keeps no error number."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
