"""Exponents on synthetic costs, and the pictures."""

import pytest
from lgf_bench import families, plots, sweeps
from support.bench_cases import row


def swept(provider: str, exponent: float, sizes=(2, 4, 8, 16), **values) -> list[dict]:
    return [
        row(
            case=f"sweep-pairs-{n}", provider=provider, sweep="pairs", size=n, peak_bytes=1000 * n,
            both={"median_ms": 3 * n**exponent, "low_ms": 1, "high_ms": 9}, **values,
        )
        for n in sizes
    ]  # fmt: skip


@pytest.mark.parametrize("b", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(b):
    sizes = [3, 5, 9, 17, 40]
    assert sweeps.exponent([(n, 7 * n**b) for n in sizes]) == pytest.approx(b, abs=1e-12)


def test_the_exponent_is_the_least_squares_slope():
    """Of (log 1, log 1), (log e, log e), (log e^2, log e^2 + 3): slope 1 + 3/2."""
    e = 2.718281828459045
    assert sweeps.exponent([(1, 1), (e, e), (e * e, e**5)]) == pytest.approx(2.5)


@pytest.mark.parametrize("points", [[], [(2, 1.0)], [(2, 1.0), (2, 2.0)], [(2, 0.0), (4, 1.0)]], ids=str)
def test_no_exponent_without_two_sizes_and_positive_costs(points):
    assert sweeps.exponent(points) is None


def test_curves_hold_what_was_timed_in_order_of_size():
    rows = swept("native", 1.0) + swept("eager", 2.0, sizes=(16, 4, 2))
    wrong = row(case="sweep-pairs-8", provider="eager", sweep="pairs", size=8, status="wrong")
    del wrong["both"]
    curves = sweeps.curves([*rows, wrong, *swept("native", 9, sizes=(2,))[:0]], "pairs")
    sizes = {name: [row["size"] for row in curve] for name, curve in curves.items()}
    assert sizes == {"eager": [2, 4, 16], "native": [2, 4, 8, 16]}
    assert sweeps.exponent(sweeps.milliseconds(curves["eager"])) == pytest.approx(2)
    assert sweeps.exponent(sweeps.peaks(curves["native"])) == pytest.approx(1)
    assert sweeps.curves(rows, "window") == {}


def test_types_have_curves_of_their_own():
    rows = swept("native", 1.0) + swept("native", 2.0, dtype="bfloat16")
    curves = sweeps.curves(rows, "pairs")
    assert {name: sweeps.exponent(sweeps.milliseconds(curve)) for name, curve in curves.items()} == pytest.approx(
        {"native, float32": 1.0, "native, bfloat16": 2.0}
    )
    assert [row["size"] for row in curves["native, float32"]] == [2, 4, 8, 16]


def test_text_shows_the_exponents():
    text = sweeps.as_text("pairs", families.sweeps(gpu=False)["pairs"], swept("native", 1.5))
    assert "1.50" in text and "1.00" in text and "T - 1" in text


@pytest.mark.parametrize("gpu", [False, True])
def test_the_sizes_are_those_of_the_cases(gpu):
    found = families.sweeps(gpu)
    for size, case in found["pairs"].cases.items():
        assert case.shape[1] - 1 == size
    for size, case in found["tokens"].cases.items():
        assert case.shape[2] * case.shape[3] == size
    for size, case in found["channels"].cases.items():
        assert case.shape[-1] == size and case.channels == (size, size)
    for size, case in found["window"].cases.items():
        assert case.window == size
    for size, case in found["relations"].cases.items():
        assert case.shape[1] * case.shape[2] == size


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    curves = sweeps.curves(swept("native", 1.0) + swept("eager", 2.0, sizes=(2, 4)), "pairs")
    plots.draw(tmp_path / "plots" / "a.png", "title", "T", curves)
    for it in curves["native"]:
        it["peak_bytes"] = None  # a system that does not tell
    plots.draw(tmp_path / "plots" / "b.png", "title", "T", curves)
    for it in curves["eager"]:
        del it["peak_bytes"]  # `--measure` without memory
    plots.draw(tmp_path / "plots" / "c.png", "title", "T", curves)
    for file in (tmp_path / "plots").iterdir():
        assert file.read_bytes()[:4] == b"\x89PNG" and file.stat().st_size > 5000
