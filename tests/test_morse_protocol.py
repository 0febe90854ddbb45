"""Is the speed-up by interpolation the paper's, and are the points that it leaves out told?"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffaccel.morse.protocol import front, speedups

ORACLE = json.loads((Path(__file__).parent / "oracles" / "morse.json").read_text())
CASES = [pytest.param(case, id=case["id"]) for case in ORACLE["cases"] if case["kind"] == "speedup"]

F = Fraction
CURVE = [(2, F(100)), (4, F(60)), (10, F(30))]


def exact(points: list[list[Any]]) -> list[tuple[Fraction, Fraction]]:
    return [(F(latency), F(str(value))) for latency, value in points]


@pytest.mark.parametrize("case", CASES)
def test_the_papers_table_gives_the_papers_mean(case: dict[str, Any]) -> None:
    found = speedups(exact(case["baseline"]), exact(case["morse"]), case["better"])
    for own, known in ((found.equivalent, case["equivalent_lsd"]), (found.speedups, case["speedups"])):
        assert [None if one is None else float(one) for one in own] == known
    assert found.mean is not None
    assert float(found.mean) == case["mean"]
    assert round(float(found.mean), 2) == case["paper_mean"]
    assert (found.left_out_better, found.left_out_worse) == (1, 0)


def test_a_point_between_two_baseline_runs_by_hand() -> None:
    # 45 lies halfway between 60 at 4 and 30 at 10, so the baseline needs 7; 80 halfway between 100 at 2 and 60 at 4.
    found = speedups(CURVE, [(2, F(45)), (4, F(80))])
    assert found.equivalent == (7, 3)
    assert found.speedups == (F(7, 2), F(3, 4))  # a point may be slower, too
    assert found.mean == F(17, 8)


def test_points_beyond_either_end_are_left_out_and_counted_apart() -> None:
    found = speedups(CURVE, [(3, F(101)), (3, F(100)), (3, F(30)), (3, F(29)), (3, F(28))])
    assert found.equivalent == (None, 2, 10, None, None)
    assert (found.left_out_worse, found.left_out_better) == (1, 2)
    assert found.mean == (F(2, 3) + F(10, 3)) / 2
    assert speedups(CURVE, [(3, F(1))]).mean is None


def test_where_the_baseline_gets_worse_again_its_first_run_that_is_as_good_counts() -> None:
    rising = [(10, F(12)), (20, F(8)), (50, F(13))]
    found = speedups(rising, [(10, F(10)), (10, F(13)), (10, F(8))])
    assert found.equivalent == (15, None, 20)
    assert (found.left_out_better, found.left_out_worse) == (0, 1)
    # A baseline that only rises is best at its first run: no speed-up can be read from it.
    assert speedups([(10, 11.75), (20, 12.35)], [(10, 9.29), (20, 11.9)]).speedups == (None, None)


def test_higher_is_better_is_the_mirror_image() -> None:
    points = [(2, F(45)), (3, F(20)), (3, F(101))]
    turned = [(latency, -value) for latency, value in points]
    assert speedups([(at, -value) for at, value in CURVE], turned, "higher") == speedups(CURVE, points)


def test_whole_numbers_stay_exact_and_seconds_do_as_well_as_steps() -> None:
    assert speedups([(1, 3), (2, 1)], [(1, 2)]).speedups == (F(3, 2),)
    assert speedups([(0.1, 3.0), (0.2, 1.0)], [(0.1, 2.0)]).speedups == pytest.approx((1.5,))


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100)), min_size=2, max_size=8, unique_by=lambda p: p[0]),
    st.integers(1, 5),
)
def test_a_curve_is_not_faster_than_itself_and_scales_with_latency(curve: list[tuple[int, int]], factor: int) -> None:
    falling = sorted(front(curve))
    if len(falling) < 2:
        return
    assert set(speedups(falling, falling).speedups) == {1}
    slower = [(factor * latency, value) for latency, value in falling]
    assert set(speedups(slower, falling).speedups) == {factor}


def test_the_front_leaves_what_a_cheaper_run_is_as_good_as() -> None:
    points = [(3, 20), (4, 25), (2, 30), (3, 22), (6, 20), (8, 5)]
    assert front(points) == [(2, 30), (3, 20), (8, 5)]
    assert front([(at, -value) for at, value in points], "higher") == [(2, -30), (3, -20), (8, -5)]


@pytest.mark.parametrize(
    ("baseline", "points", "better", "message"),
    [
        ([(3, 1.0)], [(3, 1.0)], "lower", "two latencies or more"),
        ([(3, 1.0), (3, 2.0)], [(3, 1.0)], "lower", "one latency"),
        (CURVE, [], "lower", "no point"),
        (CURVE, [(0, 50)], "lower", "positive"),
        (CURVE, [(math.nan, 50)], "lower", "positive"),
        (CURVE, [(1, math.nan)], "lower", "finite number"),
        ([(1, math.inf), (2, 1.0)], [(1, 1.0)], "lower", "finite number"),
        (CURVE, [(1, 50)], "smaller", "'lower' or 'higher'"),
    ],
)
def test_what_cannot_be_interpolated_is_refused(baseline: Any, points: Any, better: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speedups(baseline, points, better)
