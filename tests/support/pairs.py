"""Products of options. `make test` runs a few combinations with every pair of values, `make test-all` runs all."""

import itertools

import pytest
from allpairspy import AllPairs


def every_pair(**arguments):
    """Parametrize a test with the product of some arguments' values; combinations beyond a covering of all pairs are slow.

    The values of an argument are a sequence, or a dictionary of those of several options, which a test gets as one dictionary.
    """
    return product(arguments, lambda places: AllPairs(places) if len(places) > 2 else itertools.product(*places))


def every_value(**arguments):
    """Parametrize likewise, where one combination for each value is enough in the quick run."""

    def cover(places):
        return [[i % len(place) for place in places] for i in range(max(map(len, places)))]

    return product(arguments, cover)


def product(arguments, cover):
    axes = {
        (argument, option): list(values)
        for argument, given in arguments.items()
        for option, values in (given if isinstance(given, dict) else {None: given}).items()
    }
    places = [range(len(values)) for values in axes.values()]
    covering = {tuple(row) for row in cover(places)}
    rows = []
    for row in itertools.product(*places):
        chosen = {axis: axes[axis][place] for axis, place in zip(axes, row, strict=True)}
        values = [
            {option: value for (name, option), value in chosen.items() if name == argument}
            if isinstance(arguments[argument], dict)
            else chosen[argument, None]
            for argument in arguments
        ]
        marks = () if row in covering else pytest.mark.slow
        rows.append(pytest.param(*values, id="-".join(map(name_of, chosen.values())), marks=marks))
    return pytest.mark.parametrize(list(arguments), rows)


def name_of(value) -> str:
    return getattr(value, "__name__", None) or str(value).removeprefix("torch.")
