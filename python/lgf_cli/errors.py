"""Mistakes that are the user's to mend."""


class UserError(ValueError):
    """Bad input or bad surroundings: the message, one line, says what is wrong and what to do.

    The command prints it without a traceback and exits with 1.
    """
