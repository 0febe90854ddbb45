"""Do the ODE solvers have the weights, the order and the fallbacks they claim?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffaccel.forecast import POOL, SOLVERS, STRICT_POOL, Forecaster, Grouped, Hold, Newton, Solver, Taylor

ORACLE = json.loads((Path(__file__).parent / "oracles" / "hyca.json").read_text())

fractions = st.fractions(min_value=-50, max_value=50, max_denominator=20)
spacings = st.fractions(min_value=Fraction(1, 20), max_value=20, max_denominator=20)
names = st.sampled_from(sorted(SOLVERS))


def cases(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["id"]) for case in ORACLE["cases"] if case["kind"] == kind]


def forecast(rule: Forecaster, feature: Callable[[Any], Any], times: list[Any], t: Any) -> Any:
    return sum(w * feature(s) for w, s in zip(rule.weights(times, t), times, strict=True))


def evenly(newest: Fraction, h: Fraction, anchors: int = 3) -> list[Fraction]:
    return [newest - j * h for j in range(anchors)]


@pytest.mark.parametrize("case", cases("weights"))
def test_weights_one_spacing_ahead(case: dict[str, Any]) -> None:
    solver, h = SOLVERS[case["solver"]], Fraction(3)
    weights = solver.weights(evenly(Fraction(20), h), 20 + h * case["offset_over_spacing"])
    assert weights == [Fraction(w) for w in case["weights"]]
    assert (solver.degree == 1) == case["continues_a_line"]


# Those the oracles give no weights for, from their textbook steps in the slopes f0 = F0 - F1 and f1 = F1 - F2:
# BDF2 is 4/3 F0 - 1/3 F1 + 2/3 f, AM2 is F0 + 1/2 (f + f0) with f from the AB2 prediction F0 + 3/2 f0 - 1/2 f1.
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("bdf2_extrapolated", lambda f0, f1: f0 / 3 + Fraction(2, 3) * (2 * f0 - f1)),
        ("bdf2_frozen", lambda f0, f1: f0 / 3 + Fraction(2, 3) * f0),
        ("bdf2_zero_slope", lambda f0, f1: f0 / 3),
        ("am2", lambda f0, f1: ((3 * f0 - f1) / 2 + f0) / 2),
        ("am3", lambda f0, f1: (5 * (3 * f0 - f1) / 2 + 8 * f0 - f1) / 12),
        ("tf2", lambda f0, f1: f0 + (f0 - f1) / 2),
        ("rk2", lambda f0, f1: (f0 + f1) / 2),
    ],
)
@given(values=st.tuples(fractions, fractions, fractions))
def test_one_step_of_the_textbook(
    name: str, step: Callable[[Fraction, Fraction], Fraction], values: tuple[Fraction, ...]
) -> None:
    f = dict(enumerate(values))  # F0, F1, F2 at the times 0, -1, -2
    result = forecast(SOLVERS[name], lambda s: f[-int(s)], evenly(Fraction(0), Fraction(1)), Fraction(1))
    assert result == f[0] + step(f[0] - f[1], f[1] - f[2])


@pytest.mark.parametrize("case", [*cases("one_step"), *cases("offset")])
def test_forecasts_of_the_oracles(case: dict[str, Any]) -> None:
    h = float(case.get("spacing", 1))
    x = float(case["offset"]) if "offset" in case else h * case["offset_over_spacing"]
    for name, expected in case["expected"].items():
        weights = SOLVERS[name].weights([10 * h, 9 * h, 8 * h], 10 * h + x)
        result = sum(w * f for w, f in zip(weights, case["anchors"], strict=True))
        assert result == pytest.approx(expected, rel=1e-9), name


@pytest.mark.parametrize("case", cases("selection"))
def test_next_step_errors_of_the_oracles(case: dict[str, Any]) -> None:
    series = case["series"]
    errors = {
        name: np.mean(
            [
                (forecast(SOLVERS[name], lambda s: series[int(s)], [t - 1.0, t - 2.0, t - 3.0], float(t)) - series[t])
                ** 2
                for t in range(3, len(series))
            ]
        )
        for name in case["mse"]
    }
    assert errors == pytest.approx(case["mse"], rel=1e-9, abs=1e-12)
    least = min(errors[name] for name in case["pool"])
    assert {name for name in case["pool"] if errors[name] <= least + 1e-9} == set(case["best"])


# Worked out by hand at x = 2 for h0, h1 = 6, 6 and 6, 1.
@pytest.mark.parametrize(
    ("name", "even", "uneven"),
    [
        ("rk2", "7/6 0 -1/6", "7/6 5/6 -1"),
        ("ab2", "25/18 -4/9 1/18", "10/7 -1 4/7"),
        ("am3", "295/216 -43/108 7/216", "25/18 -13/18 1/3"),
        ("am2", "49/36 -7/18 1/36", "29/21 -2/3 2/7"),
        ("bdf2_extrapolated", "38/27 -13/27 2/27", "92/63 -11/9 16/21"),
        ("tf1", "4/3 -1/3 0", "4/3 -1/3 0"),
        ("bdf2_zero_slope", "10/9 -1/9 0", "10/9 -1/9 0"),
        ("reuse", "1 0 0", "1 0 0"),
    ],
)
def test_weights_between_spacings(name: str, even: str, uneven: str) -> None:
    for times, expected in (((20, 14, 8), even), ((20, 14, 13), uneven)):
        weights = SOLVERS[name].weights([Fraction(s) for s in times], Fraction(22))
        assert weights == [Fraction(w) for w in expected.split()]


@given(names, fractions, spacings, spacings, spacings, fractions, fractions.filter(bool))
def test_who_continues_a_line(
    name: str, newest: Fraction, h0: Fraction, h1: Fraction, x: Fraction, level: Fraction, slope: Fraction
) -> None:
    def line(s: Fraction) -> Fraction:
        return level + slope * s

    times = [newest, newest - h0, newest - h0 - h1]
    missed = line(newest + x) - forecast(SOLVERS[name], line, times, newest + x)
    assert missed == slope * x * {"reuse": 1, "bdf2_zero_slope": Fraction(2, 3)}.get(name, 0)
    assert sum(SOLVERS[name].weights(times, newest + x)) == 1
    assert (SOLVERS[name].degree == 1) == (missed == 0)


@given(st.sampled_from(["ab2", "tf2"]), fractions, spacings, fractions)
def test_ab2_is_taylorseer_on_even_anchors(name: str, newest: Fraction, h: Fraction, t: Fraction) -> None:
    times = evenly(newest, h)
    assert SOLVERS[name].weights(times, t) == Taylor(2).weights(times, t)


def test_ab2_is_not_taylorseer_where_the_spacing_changes() -> None:
    times = [Fraction(s) for s in (20, 14, 13)]
    assert SOLVERS["ab2"].weights(times, Fraction(22)) != Taylor(2).weights(times, Fraction(22))


@pytest.mark.parametrize("name", ["tf1", "bdf2_frozen"])
@given(newest=fractions, h0=spacings, h1=spacings, t=fractions)
def test_tf1_is_taylorseer_of_order_one(name: str, newest: Fraction, h0: Fraction, h1: Fraction, t: Fraction) -> None:
    times = [newest, newest - h0, newest - h0 - h1]
    assert SOLVERS[name].weights(times, t) == Taylor(1).weights(times, t)


# Next-step error over h^order as h -> 0: of the reuse family in units of F', of the line-exact ones in units of F''.
# 2 - a for slopes blended a : 1 - a, so ab2 and tf2 miss the third order that only a = 2, the parabola, has.
CONSTANTS = {
    "reuse": (1, 1.0),
    "bdf2_zero_slope": (1, 2 / 3),
    "rk2": (2, 3 / 2),
    "tf1": (2, 1.0),
    "bdf2_frozen": (2, 1.0),
    "am2": (2, 3 / 4),
    "am3": (2, 17 / 24),
    "ab2": (2, 1 / 2),
    "tf2": (2, 1 / 2),
    "bdf2_extrapolated": (2, 1 / 3),
}


def errors_of(rule: Forecaster, h: float, ratio: float = 1.0) -> float:
    """Next-step error on exp at t_0 = 0, where all derivatives are 1; anchors h and ratio h apart."""
    return math.exp(h) - forecast(rule, math.exp, [0.0, -h, -h - ratio * h], h)


@pytest.mark.parametrize("ratio", [1.0, 0.4])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_convergence_has_the_slope_claimed(name: str, ratio: float) -> None:
    h = 2.0 ** -np.arange(6, 13)
    logs = np.log([abs(errors_of(SOLVERS[name], each, ratio)) for each in h])
    slope = np.polyfit(np.log(h), logs, 1)[0]
    assert slope == pytest.approx(CONSTANTS[name][0], abs=0.02)
    assert SOLVERS[name].degree + 1 == CONSTANTS[name][0]


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_error_constant(name: str) -> None:
    order, constant = CONSTANTS[name]
    h = 1e-4
    assert errors_of(SOLVERS[name], h) / h**order == pytest.approx(constant, rel=1e-3)


def test_the_parabola_would_be_of_third_order() -> None:
    h = 2.0 ** -np.arange(4, 9)
    slope = np.polyfit(np.log(h), np.log([abs(errors_of(Newton(2), each)) for each in h]), 1)[0]
    assert slope == pytest.approx(3, abs=0.1)


@given(names, fractions, spacings, fractions, st.sampled_from([None, 3]))
def test_one_anchor_is_reuse_and_two_are_tf1(
    name: str, newest: Fraction, h: Fraction, t: Fraction, needs: int | None
) -> None:
    solver = Solver(name, needs=needs)
    assert solver.weights([newest], t) == [1]
    if solver.order == 2:
        assert solver.weights([newest, newest - h], t) == Taylor(1).weights([newest, newest - h], t)
    else:
        whole = SOLVERS[name].weights([newest, newest - h, newest - 3 * h], t)
        assert [*solver.weights([newest, newest - h], t), 0] == whole


@given(names, fractions, spacings, spacings, fractions)
def test_a_higher_need_changes_nothing_on_three_anchors(
    name: str, newest: Fraction, h0: Fraction, h1: Fraction, t: Fraction
) -> None:
    times = [newest, newest - h0, newest - h0 - h1]
    assert Solver(name, needs=3).weights(times, t) == Solver(name).weights(times, t)


@given(names, fractions, spacings, spacings, st.lists(spacings, max_size=3), fractions)
def test_more_anchors_than_needed_weigh_nothing(
    name: str, newest: Fraction, h0: Fraction, h1: Fraction, older: list[Fraction], t: Fraction
) -> None:
    times = [newest, newest - h0, newest - h0 - h1]
    more = list(times)
    for h in older:
        more.append(more[-1] - h)
    assert SOLVERS[name].weights(more, t) == SOLVERS[name].weights(times, t) + [0] * len(older)


@given(names, fractions, spacings, spacings, fractions, fractions.filter(bool), fractions)
def test_weights_do_not_depend_on_the_unit_or_direction_of_time(
    name: str, newest: Fraction, h0: Fraction, h1: Fraction, t: Fraction, scale: Fraction, shift: Fraction
) -> None:
    solver, times = SOLVERS[name], [newest, newest - h0, newest - h0 - h1]
    assert solver.weights([scale * s + shift for s in times], scale * t + shift) == solver.weights(times, t)


@given(names, st.tuples(spacings, spacings, spacings))
def test_floats_and_whole_numbers_in_floats_out(name: str, steps: tuple[Fraction, ...]) -> None:
    h0, h1, x = steps
    exact = SOLVERS[name].weights([Fraction(0), -h0, -h0 - h1], x)
    result = SOLVERS[name].weights([0.0, float(-h0), float(-h0 - h1)], float(x))
    assert all(isinstance(w, float) for w in result)
    assert result == pytest.approx([float(w) for w in exact], rel=1e-9, abs=1e-9)
    assert SOLVERS[name].weights([20, 14, 13], 22) == pytest.approx(SOLVERS[name].weights([20.0, 14.0, 13.0], 22.0))
    assert not any(isinstance(w, Fraction) for w in SOLVERS[name].weights([20, 14, 13], 22))


def test_the_history_starts_late_after_warm_up() -> None:
    times = [Fraction(s) for s in (2, 1, 0)]
    # Three warm-up steps: the step before the last is the first of the history, two anchors are left.
    assert Solver("ab2", start=1).weights(times, Fraction(7)) == [6, -5, 0]
    assert Solver("bdf2_extrapolated", start=1).weights(times, Fraction(7)) == [6, -5, 0]
    assert Solver("reuse", start=1, needs=3).weights(times, Fraction(7)) == [6, -5, 0]
    assert Solver("reuse", start=1).weights(times, Fraction(7)) == [1, 0, 0]
    assert Solver("ab2", start=5).weights(times, Fraction(7)) == [1, 0, 0]
    # All of the warm-up would be extrapolated five spacings ahead with weights of 61 in sum.
    assert sum(abs(w) for w in Solver("ab2").weights(times, Fraction(7))) == 61


def test_orders_and_pools() -> None:
    assert {name: solver.order for name, solver in SOLVERS.items()} == {
        **dict.fromkeys(SOLVERS, 2),
        "reuse": 0,
        "tf1": 1,
        "bdf2_frozen": 1,
        "bdf2_zero_slope": 1,
    }
    assert all(solver == Solver(name) for name, solver in SOLVERS.items())
    # No two members of a pool are one forecast under two names.
    for pool in (POOL, STRICT_POOL):
        rows = {tuple(SOLVERS[name].weights([Fraction(s) for s in (9, 5, 2)], Fraction(11))) for name in pool}
        assert len(rows) == len(pool)


def test_groups_have_a_row_each() -> None:
    grouped = Grouped((Solver("ab2"), Solver("reuse"), Taylor(3), Hold(), Solver("tf1")))
    times, t = [Fraction(s) for s in (18, 12, 6, 0)], Fraction(21)
    assert grouped.order == 3
    assert grouped.weights(times, t) == [
        [Fraction(13, 8), Fraction(-3, 4), Fraction(1, 8), 0],
        [1, 0, 0, 0],
        Taylor(3).weights(times, t),
        [1, 0, 0, 0],
        [Fraction(3, 2), Fraction(-1, 2), 0, 0],
    ]


@given(st.lists(names, min_size=1, max_size=5), st.integers(1, 5), fractions)
def test_a_group_is_forecast_as_if_alone(chosen: list[str], anchors: int, t: Fraction) -> None:
    grouped = Grouped(tuple(Solver(name, start=-9) for name in chosen))
    times = [Fraction(-(j * j)) for j in range(anchors)]
    rows = grouped.weights(times, t)
    assert rows == [Solver(name, start=-9).weights(times, t) for name in chosen]
    assert hash(grouped) == hash(Grouped(grouped.forecasters))


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_refused(name: str) -> None:
    with pytest.raises(ValueError, match="at least one anchor"):
        SOLVERS[name].weights([], 1.0)
    with pytest.raises(ValueError, match="must differ"):
        Solver(name, needs=3).weights([2.0, 1.0, 1.0], 3.0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown solver 'rk4': choose one of reuse, rk2"):
        Solver("rk4")
    with pytest.raises(ValueError, match="ab2 weights 3 anchors: needs must be 3 to 3, got 2"):
        Solver("ab2", needs=2)
    with pytest.raises(ValueError, match="got 4"):
        Solver("reuse", needs=4)
    with pytest.raises(ValueError, match="at least one forecaster"):
        Grouped(())
