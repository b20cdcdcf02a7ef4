"""Errors of the library beyond the plain ValueError and TypeError that bad arguments raise."""


class BackendUnavailableError(ValueError, RuntimeError):
    """A backend was asked for by name and cannot run these inputs on this machine; the message says why.

    A ValueError, because the argument asks for what is not there, and a RuntimeError, because elsewhere it may be.
    """


class OnceDifferentiableError(ValueError, RuntimeError):
    """A second derivative was asked for. Also a RuntimeError: that is what torch raises for its own such functions."""
