"""Are the weights those of the papers, in exact arithmetic?"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffaccel.forecast import Hold, Newton, Taylor

ORACLE = json.loads((Path(__file__).parent / "oracles" / "taylorseer.json").read_text())
ROWS = [
    pytest.param(case, row, id=f"{case['id']}-{row['step']}")
    for case in ORACLE["cases"]
    if case["kind"] == "forecast"
    for row in case["rows"]
    if row["type"] == "predict"
]

fractions = st.fractions(min_value=-50, max_value=50, max_denominator=20)
anchor_times = st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True).map(
    lambda times: [Fraction(time) for time in sorted(times, reverse=True)]
)
rules = st.one_of(st.builds(Taylor, st.integers(0, 4)), st.builds(Newton, st.integers(0, 4)), st.just(Hold()))


@pytest.mark.parametrize(("case", "row"), ROWS)
def test_weights_of_the_official_recursion(case: dict[str, Any], row: dict[str, Any]) -> None:
    times = [Fraction(step) for step in row["anchors"]]
    weights = Taylor(case["setting"]["order"]).weights(times, Fraction(row["step"]))
    assert weights == [Fraction(w) for w in row["weights"]]


def official_recursion(values: dict[int, Fraction], order: int, first_enhance: int, step: int) -> Fraction:
    """The loop of the official code, on one number: derivatives by difference, then the Taylor series."""
    derivatives: list[Fraction] = []
    last = 0
    for now in sorted(values):
        fresh = [values[now]]
        for i in range(order):
            if i < len(derivatives) and now > first_enhance - 2:
                fresh.append((fresh[i] - derivatives[i]) / (now - last))
            else:
                break
        derivatives, last = fresh, now
    x, total, factorial = Fraction(step - last), Fraction(0), 1
    for i, derivative in enumerate(derivatives):
        factorial *= max(i, 1)
        total += derivative * x**i / factorial
    return total


@given(
    st.lists(fractions, min_size=1, max_size=6),
    st.dictionaries(st.integers(6, 40), fractions, max_size=6),
    st.integers(0, 4),
    st.integers(1, 9),
)
def test_equal_to_the_official_loop_at_any_spacing(
    warmup: list[Fraction], later: dict[int, Fraction], order: int, ahead: int
) -> None:
    # The gate on the first differences relies on all warm-up steps being computed, as the official schedule has it.
    first_enhance = len(warmup)
    values = {**dict(enumerate(warmup)), **later}
    times = sorted(values, reverse=True)
    t = times[0] + ahead
    weights = Taylor(order, start=max(0, first_enhance - 2)).weights([Fraction(s) for s in times], Fraction(t))
    forecast = sum(w * values[s] for w, s in zip(weights, times, strict=True))
    assert forecast == official_recursion(values, order, first_enhance, t)


@given(rules, anchor_times, fractions)
def test_weights_sum_to_one(rule: Taylor, times: list[Fraction], t: Fraction) -> None:
    weights = rule.weights(times, t)
    assert len(weights) == len(times)
    assert sum(weights) == 1
    assert all(w == 0 for w in weights[rule.order + 1 :])


@given(st.sampled_from([Taylor, Newton]), st.integers(1, 4), anchor_times, fractions, fractions, fractions)
def test_a_line_is_continued_exactly(
    kind: type[Taylor], order: int, times: list[Fraction], t: Fraction, slope: Fraction, level: Fraction
) -> None:
    if len(times) < 2:
        times = [*times, times[0] - 1]
    weights = kind(order).weights(times, t)
    assert sum(w * (level + slope * s) for w, s in zip(weights, times, strict=True)) == level + slope * t


@given(anchor_times, fractions, st.lists(fractions, min_size=1, max_size=6))
def test_newton_is_exact_for_polynomials_up_to_its_order(
    times: list[Fraction], t: Fraction, coefficients: list[Fraction]
) -> None:
    coefficients = coefficients[: len(times)]

    def polynomial(x: Fraction) -> Fraction:
        return sum((c * x**i for i, c in enumerate(coefficients)), Fraction(0))

    weights = Newton(len(coefficients) - 1).weights(times, t)
    assert sum(w * polynomial(s) for w, s in zip(weights, times, strict=True)) == polynomial(t)


def test_taylor_misses_a_parabola_that_newton_hits() -> None:
    values = {0: 1, 3: 34, 6: 121}  # 1 + 2s + 3s^2
    times = [Fraction(s) for s in (6, 3, 0)]
    forecast = {
        rule: sum(w * values[int(s)] for w, s in zip(rule.weights(times, Fraction(7)), times, strict=True))
        for rule in (Taylor(2), Newton(2))
    }
    assert forecast == {Taylor(2): 153, Newton(2): 162}


@given(rules, anchor_times, fractions, fractions.filter(bool), fractions)
def test_weights_do_not_depend_on_the_unit_or_direction_of_time(
    rule: Taylor, times: list[Fraction], t: Fraction, scale: Fraction, shift: Fraction
) -> None:
    assert rule.weights([scale * s + shift for s in times], scale * t + shift) == rule.weights(times, t)


def test_anchors_before_the_start_are_ignored() -> None:
    times = [Fraction(s) for s in (2, 1, 0)]
    assert Taylor(2, start=1).weights(times, Fraction(7)) == [6, -5, 0]
    # The newest anchor always stays.
    assert Taylor(2, start=5).weights(times, Fraction(7)) == [1, 0, 0]


def test_floats_in_floats_out() -> None:
    assert Taylor(1).weights([4.0, 2.0], 5.0) == pytest.approx([1.5, -0.5])


@pytest.mark.parametrize("rule", [Taylor(1), Newton(1), Hold(1)])
def test_refused(rule: Taylor) -> None:
    with pytest.raises(ValueError, match="at least one anchor"):
        rule.weights([], 1.0)
    with pytest.raises(ValueError, match="must differ"):
        rule.weights([2.0, 2.0], 3.0)


@pytest.mark.parametrize("kind", [Taylor, Newton])
def test_negative_order_is_refused(kind: type[Taylor]) -> None:
    with pytest.raises(ValueError, match="order must be 0"):
        kind(-1)
