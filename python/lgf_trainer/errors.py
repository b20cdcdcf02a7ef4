"""Mistakes that are the user's to mend."""


class TrainerError(ValueError):
    """Bad input or bad surroundings: the message, one line, says what is wrong and what to do.

    The commands print it without a traceback and exit with 1.
    """
