"""What `lgf bench` says to whoever mistyped."""


class UserError(Exception):
    """A mistake in the command, with the way out."""
