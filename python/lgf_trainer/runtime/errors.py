"""Error for mistakes that the user can correct, and libraries' errors as such."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from lgf_cli.errors import UserError


class TrainerError(UserError):
    """Error for invalid input or environment of the trainer: what is wrong, what was expected, and the way out.

    Whatever reads what users give raises it; docstrings say so where it is not plain.
    """


@contextmanager
def explained(
    what: str, *kinds: type[Exception], way_out: str = "", error: type[TrainerError] = TrainerError
) -> Iterator[None]:
    """Raise a library's errors of some kinds as one of ours, of one line: `what` (the library's words). `way_out`."""
    try:
        yield
    except TrainerError:
        raise
    except kinds as cause:
        raise error(f"{what} ({in_short(cause)})" + (f". {way_out}" if way_out else "")) from cause


def in_short(error: Exception) -> str:
    """Return the message of a library's error, short enough for one line."""
    if is_disk_full(error):
        return "the disk is full"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200].rstrip(".")


def is_disk_full(error: Exception) -> bool:
    """Return whether an error says that the disk is full, safetensors' too, which keeps no error number."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
