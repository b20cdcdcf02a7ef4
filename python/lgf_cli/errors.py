"""Error for mistakes that the user can correct."""


class UserError(ValueError):
    """Error for invalid input or environment, with a message of one line: what is wrong, and what to do.

    The command prints the message without a traceback and exits with 1.
    """
