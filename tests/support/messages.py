"""Calls with bad arguments. A message names the argument, what was expected, what was given, and the way out."""

import pytest


def refused(bad: dict):
    """Parametrize a test with bad calls: what is wrong -> (call, type of the error, words that its message must hold)."""
    return pytest.mark.parametrize(("call", "error", "words"), bad.values(), ids=bad.keys())


def check(call, error, words) -> None:
    """Call, and look for the words in the message of the error."""
    with pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
