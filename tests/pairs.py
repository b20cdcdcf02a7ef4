"""Products of options. `make test` runs so few combinations that any two values meet, `make test-all` all of them."""

import itertools

import pytest
from allpairspy import AllPairs


def every_pair(**axes):
    """Parametrize a test with the product of some arguments' values; those beyond a covering of all pairs are slow.

    A value may be a pytest.param, for its id.
    """
    choices = [list(values) for values in axes.values()]
    places = [range(len(values)) for values in choices]
    covering = set(map(tuple, AllPairs(places))) if len(places) > 2 else set(itertools.product(*places))
    return pytest.mark.parametrize(
        list(axes),
        [
            pytest.param(
                *(values[place] for values, place in zip(choices, combination, strict=True)),
                marks=() if combination in covering else pytest.mark.slow,
            )
            for combination in itertools.product(*places)
        ],
    )
