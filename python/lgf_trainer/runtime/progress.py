"""Progress of long work: a bar on a terminal, and a line now and then in a log file."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

LOG_SECONDS = 20.0  # between two lines in a log file
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _LogLines(tqdm):
    """Whole lines, instead of a bar that is drawn again in place: whatever else goes to the log has lines of its own."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        def show(text: str) -> None:
            file.write(f"{text}\n")
            file.flush()

        return show

    def close(self) -> None:
        """Show the last state, without the line feed that tqdm ends its bar with."""
        if not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)


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


@contextmanager
def bars_only_on_terminals() -> Iterator[None]:
    """Let Hugging Face's libraries draw no bars of reading and writing models where standard error is no terminal.

    HF_HUB_DISABLE_PROGRESS_BARS=0 has them drawn everywhere, as it has in these libraries.
    """
    drawn = [] if sys.stderr.isatty() else list(_drawn_bars())
    for off, _ in drawn:
        off()
    try:
        yield
    finally:
        for _, on in drawn:
            on()


def _drawn_bars() -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Yield what turns the bars of a library off and on again, for each that draws some, unless the user asks for them."""
    from huggingface_hub import constants, utils

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        return
    if not utils.are_progress_bars_disabled():
        yield utils.disable_progress_bars, utils.enable_progress_bars
    for library in ("transformers", "diffusers"):
        if library in sys.modules:
            logging = importlib.import_module(f"{library}.utils.logging")
            if logging.is_progress_bar_enabled():
                yield logging.disable_progress_bar, logging.enable_progress_bar
