"""Do the rules of BAC give the schedules that trying all of them gives, and refresh the blocks they should?"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffaccel.methods.bac import (
    adaptive_schedule,
    adjacent_score,
    anchor_score,
    bubbling_loss,
    bubbling_union,
    evenly_spaced,
)
from diffaccel.similarity import similarity

ORACLE = json.loads((Path(__file__).parent / "oracles" / "bac.json").read_text())
RELATIVE, ABSOLUTE = ORACLE["tolerance"]["float64_relative"], ORACLE["tolerance"]["float64_absolute"]

Array = npt.NDArray[np.float64]


def cases(kind: str) -> list[dict[str, Any]]:
    return [case for case in ORACLE["cases"] if case["kind"] == kind]


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=RELATIVE, abs=ABSOLUTE)


def block_names(layers: int) -> list[str]:
    return [f"decoder.layers.{i}.{kind}" for i in range(layers) for kind in ("sa", "ca", "ffn")]


def walk(seed: int, steps: int, width: int = 6) -> Array:
    return np.random.default_rng(seed).normal(size=(steps, width)).cumsum(0)


def test_no_case_is_left_out() -> None:
    assert {case["kind"] for case in ORACLE["cases"]} == {"schedule", "bubbling", "ranking", "bubbling_from_features"}


@pytest.mark.parametrize("case", cases("schedule"), ids=lambda case: case["id"])
def test_oracle_schedule(case: dict[str, Any]) -> None:
    table, updates, anchor = case["similarity"], case["updates"], case["anchor"]
    found = adaptive_schedule(table, updates, case["better"])
    assert anchor_score(table, found) == close(anchor["score"])
    assert found in anchor["optimal"]
    assert all(anchor_score(table, one) == close(anchor["score"]) for one in anchor["optimal"])
    even = evenly_spaced(updates, case["steps"])
    assert even == case["evenly_spaced"]["schedule"]
    assert anchor_score(table, even) == close(case["evenly_spaced"]["score"])


@pytest.mark.parametrize("case", [case for case in cases("schedule") if "printed" in case], ids=lambda case: case["id"])
def test_oracle_printed_form(case: dict[str, Any]) -> None:
    table, printed = case["similarity"], case["printed"]
    found = adaptive_schedule(table, case["updates"], case["better"], objective="adjacent")
    assert adjacent_score(table, found) == close(printed["score"])
    assert found in printed["optimal"]


@settings(deadline=None)
@given(
    steps=st.integers(2, 9), seed=st.integers(0, 2**32 - 1), objective=st.sampled_from(["anchor", "adjacent"]),
    better=st.sampled_from(["higher", "lower"]),
)  # fmt: skip
def test_no_schedule_is_better(steps: int, seed: int, objective: Any, better: Any) -> None:
    table = np.random.default_rng(seed).uniform(-1, 1, size=(steps, steps))
    score = {"anchor": anchor_score, "adjacent": adjacent_score}[objective]
    best = max if better == "higher" else min
    for updates in range(1, steps + 1):
        every = [[0, *rest] for rest in itertools.combinations(range(1, steps), updates - 1)]
        found = adaptive_schedule(table, updates, better, objective)
        assert found == best(every, key=lambda one: score(table, one))


def test_anchor_score_by_hand() -> None:
    table = np.array([[1.0, 0.5, 0.25], [9.0, 1.0, 0.75], [9.0, 9.0, 1.0]])
    assert anchor_score(table, [0]) == 1.75
    assert anchor_score(table, [0, 1]) == 2.75
    assert anchor_score(table, [0, 2]) == 2.5
    assert anchor_score(table, [0, 1, 2]) == 3


@pytest.mark.parametrize("metric", ["cosine", "mse"])
@pytest.mark.parametrize("objective", ["anchor", "adjacent"])
def test_as_many_steps_as_asked(metric: str, objective: Any) -> None:
    table = similarity(walk(1, 20), metric)
    better = "higher" if metric == "cosine" else "lower"
    for updates in range(1, 21):
        found = adaptive_schedule(table, updates, better, objective)
        assert found[0] == 0
        assert len(found) == updates
        assert found == sorted(set(found) & set(range(20)))


@pytest.mark.parametrize("seed", range(5))
def test_never_worse_than_evenly_spaced(seed: int) -> None:
    table = similarity(walk(seed, 30))
    for updates in range(1, 31):
        even = anchor_score(table, evenly_spaced(updates, 30))
        assert anchor_score(table, adaptive_schedule(table, updates)) >= even - 1e-12


def test_the_size_of_a_block_does_not_matter_to_cosine() -> None:
    features = walk(2, 40)
    schedules = [adaptive_schedule(similarity(size * features), 6) for size in (1.0, 1e-3, 40.0)]
    assert schedules[0] == schedules[1] == schedules[2]


def test_the_order_of_samples_does_not_matter() -> None:
    samples = np.stack([walk(seed, 30) for seed in range(6)])
    schedules = [adaptive_schedule(similarity(one, samples=True), 5) for one in (samples, samples[::-1])]
    assert schedules[0] == schedules[1]
    losses = [bubbling_loss(one, samples=True) for one in (samples, samples[::-1])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0] == pytest.approx(np.mean([bubbling_loss(one) for one in samples]), rel=1e-12)


def test_an_update_goes_where_the_output_jumps() -> None:
    features = np.array([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 5 + [[-1.0, 0.0]] * 3)
    assert adaptive_schedule(similarity(features), 3) == [0, 4, 9]
    assert adaptive_schedule(similarity(features, "l1"), 3, "lower", "adjacent") == [0, 4, 9]


def test_small_changes_add_up_for_anchors_and_not_for_neighbours() -> None:
    """A slow turn by 90 degrees, then a sudden one by 20: only the anchor form sees that the slow one is larger."""
    angles = np.radians([0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 110])
    table = similarity(np.stack([np.cos(angles), np.sin(angles)], 1))
    assert adaptive_schedule(table, 2, objective="adjacent") == [0, 10]
    assert 4 <= adaptive_schedule(table, 2)[1] <= 7


@pytest.mark.parametrize("form", [np.asarray, torch.tensor, list])
def test_forms_of_tables(form: Any) -> None:
    table = similarity(walk(3, 12)).tolist()
    assert adaptive_schedule(form(table), 4) == adaptive_schedule(table, 4)


def test_24_blocks_of_a_hundred_steps_take_milliseconds() -> None:
    names = block_names(8)
    features = np.random.default_rng(0).normal(size=(24, 100, 16)).cumsum(1)
    tables = [similarity(one) for one in features]
    began = time.perf_counter()
    schedules = [adaptive_schedule(table, 10) for table in tables]
    bubbling_union(schedules, [bubbling_loss(one) for one in features], names, 5)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("table", "updates", "options", "said"),
    [
        (np.eye(4), 0, {}, "1 to 4 of 4 steps"),
        (np.eye(4), 5, {}, "1 to 4 of 4 steps"),
        (np.eye(1), 1, {}, "1 steps"),
        (np.zeros((3, 4)), 2, {}, "shape"),
        (np.zeros(4), 2, {}, "shape"),
        (np.full((4, 4), np.nan), 2, {}, "NaN"),
        (np.eye(4), 2, {"better": "larger"}, '"lower"'),
        (np.eye(4), 2, {"objective": "printed"}, '"adjacent"'),
    ],
)
def test_tables_refused(table: Array, updates: int, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        adaptive_schedule(table, updates, **options)


@pytest.mark.parametrize("schedule", [[], [1, 2], [0, 2, 2], [0, 3, 1], [0, 4]])
def test_schedules_refused(schedule: list[int]) -> None:
    for score in (anchor_score, adjacent_score):
        with pytest.raises(ValueError, match="schedule"):
            score(np.eye(4), schedule)


@pytest.mark.parametrize(("updates", "steps"), [(0, 10), (11, 10), (1, 0)])
def test_even_schedules_refused(updates: int, steps: int) -> None:
    with pytest.raises(ValueError, match=f"of {steps} steps"):
        evenly_spaced(updates, steps)
