"""Errors of the library besides the ValueError and TypeError of invalid arguments."""


class BackendUnavailableError(ValueError, RuntimeError):
    """Error for a backend that was chosen by name and cannot run these inputs on this machine.

    The message gives the reason. A ValueError, because the argument names a backend that cannot run
    the call, and a RuntimeError, because it may run on another machine.
    """


class OnceDifferentiableError(ValueError, RuntimeError):
    """Error for a second derivative.

    Also a RuntimeError, as torch raises for its own once-differentiable functions.
    """
