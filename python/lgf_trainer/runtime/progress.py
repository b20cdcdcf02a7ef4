"""Progress of long work: a bar on a terminal, and a line now and then in a log file."""

import re
import sys
from collections.abc import Callable
from itertools import chain, repeat
from typing import TextIO

from tqdm import tqdm

LOG_SECONDS = 20.0  # between two lines in a log file
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _LogLines(tqdm):
    """Lines of their own, instead of a bar that is drawn again in place."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        begin = chain([""], repeat("\n"))  # `close` ends the last line

        def show(text: str) -> None:
            file.write(next(begin) + text)
            file.flush()

        return show


def progress(*arguments, **options) -> tqdm:
    """Return `tqdm(*arguments, **options)` where standard error is a terminal. Elsewhere, its lines: the first, the last, and one
    every LOG_SECONDS.

    Give `refresh=False` to `set_description_str` and `set_postfix`, each of which would be a line otherwise.
    """
    if sys.stderr.isatty():
        return tqdm(*arguments, **options)
    line = re.sub(r"\{bar.*?\} ", "", options.get("bar_format", LINE))
    return _LogLines(
        *arguments, **options | {"bar_format": line, "mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS}
    )
