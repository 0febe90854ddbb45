"""Does the dynamic programme find the best of all schedules, and the best way to share a budget?"""

from __future__ import annotations

import itertools
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffaccel.segments import best_schedules, share_budget

Array = npt.NDArray[np.float64]

SEEDS = st.integers(0, 2**32 - 1)


def every_schedule(steps: int, updates: int) -> list[list[int]]:
    return [[0, *rest] for rest in itertools.combinations(range(1, steps), updates - 1)]


def worth(value: Array, schedule: list[int]) -> float:
    """Sum over segments, written as the definition says."""
    ends = [*(start - 1 for start in schedule[1:]), len(value) - 1]
    return float(sum(value[start, end] for start, end in zip(schedule, ends, strict=True)))


@settings(deadline=None)
@given(steps=st.integers(1, 8), seed=SEEDS, higher=st.booleans())
def test_the_best_of_all_schedules(steps: int, seed: int, higher: bool) -> None:
    value = np.random.default_rng(seed).normal(size=(steps, steps))
    best = best_schedules(value, steps, "higher" if higher else "lower")
    for updates in range(1, steps + 1):
        schedules = every_schedule(steps, updates)
        expected = (max if higher else min)(schedules, key=lambda one: worth(value, one))
        assert best.schedule(updates) == expected
        assert best.score(updates) == pytest.approx(worth(value, expected), rel=1e-12, abs=1e-12)
        assert best.scores[updates - 1] == best.score(updates)


@settings(deadline=None)
@given(steps=st.integers(2, 8), seed=SEEDS, higher=st.booleans())
def test_of_equal_schedules_the_segments_that_end_first(steps: int, seed: int, higher: bool) -> None:
    value = np.random.default_rng(seed).integers(0, 3, size=(steps, steps)).astype(float)  # many schedules are equal
    best = best_schedules(value, steps, "higher" if higher else "lower")
    for updates in range(1, steps + 1):
        schedules = every_schedule(steps, updates)
        score = (max if higher else min)(worth(value, one) for one in schedules)
        equal = [one for one in schedules if worth(value, one) == score]
        assert best.score(updates) == score
        assert best.schedule(updates) == min(equal, key=lambda one: one[::-1])


def test_what_lies_below_the_diagonal_is_not_read() -> None:
    value = np.arange(25.0).reshape(5, 5)
    spoilt = np.where(np.tri(5, k=-1, dtype=bool), np.nan, value)
    assert best_schedules(spoilt, 5).schedule(3) == best_schedules(value, 5).schedule(3)


def test_a_hundred_steps_of_24_blocks() -> None:
    values = np.random.default_rng(0).normal(size=(24, 100, 100))
    began = time.perf_counter()
    schedules = [best_schedules(value, 10).schedule(10) for value in values]
    assert time.perf_counter() - began < 1  # milliseconds, on a machine that has nothing else to do
    assert all(len(schedule) == 10 for schedule in schedules)


@pytest.mark.parametrize(
    ("value", "most", "better", "said"),
    [
        (np.zeros((3, 4)), 2, "higher", "shape"),
        (np.zeros((0, 0)), 1, "higher", "shape"),
        (np.zeros(3), 1, "higher", "shape"),
        (np.zeros((3, 3)), 4, "higher", "1 to 3"),
        (np.zeros((3, 3)), 0, "higher", "1 to 3"),
        (np.zeros((3, 3)), 2, "larger", '"lower"'),
        (np.full((3, 3), np.nan), 2, "lower", "NaN"),
        (np.full((3, 3), np.inf), 2, "lower", "infinity"),
    ],
)
def test_tables_refused(value: Array, most: int, better: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        best_schedules(value, most, better)


@pytest.mark.parametrize("updates", [0, 3, -1])
def test_only_what_was_sought_can_be_asked(updates: int) -> None:
    best = best_schedules(np.zeros((4, 4)), 2)
    for ask in (best.schedule, best.score):
        with pytest.raises(ValueError, match="1 to 2"):
            ask(updates)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=SEEDS,
    unit=st.integers(1, 3),
    extra=st.integers(0, 60),
)
def test_the_best_way_to_share(lengths: list[int], seed: int, unit: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    scores = [rng.normal(size=length) for length in lengths]
    costs = [unit * int(cost) for cost in rng.integers(1, 6, size=len(lengths))]
    budget = sum(costs) + extra
    affordable = [
        choice
        for choice in itertools.product(*(range(1, length + 1) for length in lengths))
        if np.dot(costs, choice) <= budget
    ]
    expected = min(affordable, key=lambda choice: sum(s[c - 1] for s, c in zip(scores, choice, strict=True)))
    assert share_budget(scores, costs, budget) == list(expected)


def test_by_hand() -> None:
    halves, flat = [8.0, 4.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]
    assert share_budget([halves, flat], [1, 1], 5) == [4, 1]  # what gains nothing is not bought
    assert share_budget([flat, flat], [1, 1], 8) == [1, 1]  # though it could be paid
    assert share_budget([halves, halves], [1, 1], 6) == [3, 3]
    assert share_budget([halves, halves], [1, 3], 7) == [4, 1]  # three updates of the first for one of the second
    assert share_budget([halves, halves], [1, 3], 6) == [3, 1]
    assert share_budget([halves, halves], [1, 3], 10**12) == [4, 4]  # more than everything costs


def test_a_budget_for_24_blocks_is_shared_at_once() -> None:
    rng = np.random.default_rng(0)
    scores = [np.sort(rng.random(100))[::-1] for _ in range(24)]
    costs = [27, 17, 52] * 8
    began = time.perf_counter()
    shares = share_budget(scores, costs, 10 * sum(costs))
    assert time.perf_counter() - began < 1  # some hundredths of it, on a machine that has nothing else to do
    assert sum(cost * share for cost, share in zip(costs, shares, strict=True)) <= 10 * sum(costs)
    # No exchange of one update for others of the same cost (three blocks of a kind each) does better.
    for one, other in itertools.permutations(range(0, 24, 3), 2):
        if shares[other] > 1 and shares[one] < 100:
            gain = scores[one][shares[one] - 1] - scores[one][shares[one]]
            loss = scores[other][shares[other] - 2] - scores[other][shares[other] - 1]
            assert gain <= loss


@pytest.mark.parametrize(
    ("scores", "costs", "budget", "said"),
    [
        ([], [], 1, "at least one"),
        ([[1.0]], [1, 1], 2, "one cost for each block"),
        ([[1.0], [1.0]], [2, 3], 4, "at least 5"),
        ([[1.0], [np.nan]], [1, 1], 4, "block 1"),
        ([[1.0], []], [1, 1], 4, "block 1"),
        ([[1.0], [1.0]], [1, 0], 4, "costs 0"),
        ([[1.0] * 100, [1.0] * 100], [10**6, 10**6 + 1], 10**8, "small integers"),
    ],
)
def test_budgets_refused(scores: list[list[float]], costs: list[int], budget: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        share_budget(scores, costs, budget)
