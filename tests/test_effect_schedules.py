"""Schedules by effect on the action: budgets go where reuse would move the actions most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from diffaccel.effects import Effects
from diffaccel.methods.effect import common_schedule, effect_schedules, predicted_error


def effects_of(costs: Tensor | np.ndarray[Any, Any], macs: Sequence[int] = (1, 1)) -> Effects:
    table = np.triu(np.asarray(costs, dtype=np.float64), 1)
    return Effects(tuple("ab"[: len(table)]), table.shape[1], table, table.sum(0), tuple(macs))


def line(weight: float, steps: int = 8) -> np.ndarray[Any, Any]:
    """A block that moves evenly: squared distance from where it was computed, summed with signs."""
    a, e = np.meshgrid(np.arange(steps), np.arange(steps), indexing="ij")
    return weight * np.where(e > a, (e - a) * (e - a + 1) / 2, 0) ** 2


def test_a_budget_goes_to_the_block_that_matters() -> None:
    effects = effects_of(np.stack([line(100.0), line(1e-6)]))
    shares = {name: len(row) for name, row in effect_schedules(effects, 4).items()}
    assert shares == {"a": 7, "b": 1}
    assert [len(row) for row in effect_schedules(effects, 4, shared=False).values()] == [4, 4]
    # An update of the one that matters costs three of the other.
    dear = effect_schedules(effects_of(np.stack([line(100.0), line(1e-6)]), (3_000_000, 1_000_000)), 4)
    assert {name: len(row) for name, row in dear.items()} == {"a": 5, "b": 1}


def test_shared_schedules_are_no_worse_and_within_the_budget() -> None:
    effects = effects_of(np.random.default_rng(0).random((2, 8, 8)).cumsum(-1), (7_000, 2_500))
    for updates in range(1, 9):
        shared, each = effect_schedules(effects, updates), effect_schedules(effects, updates, shared=False)
        assert predicted_error(effects, shared) <= predicted_error(effects, each) + 1e-12 or shared == each
        spent = sum(cost * len(row) for cost, row in zip(effects.macs, shared.values(), strict=True))
        assert spent <= updates * sum(effects.macs) * 1.04
        assert all(row[0] == 0 for row in shared.values())
        assert len(common_schedule(effects, updates)) == updates


def test_all_steps_computed_have_no_effect() -> None:
    effects = effects_of(np.stack([line(1.0), line(2.0)]))
    everything = effect_schedules(effects, 8)
    assert everything == {"a": list(range(8)), "b": list(range(8))}
    assert predicted_error(effects, everything) == 0


def test_the_predicted_error_sums_the_segments() -> None:
    effects = effects_of(np.stack([line(1.0), line(2.0)]))
    # a: segments 0-2 (1 + 2 = 3) and 3-7 (1 + 2 + 3 + 4 = 10); b: 0-7 (28)
    assert predicted_error(effects, {"a": [0, 3], "b": [0]}) == pytest.approx((9 + 100 + 2 * 28**2) ** 0.5)


@pytest.mark.parametrize(
    "wrong", [{"a": [0]}, {"a": [1], "b": [0]}, {"a": [0, 8], "b": [0]}, {"a": [0, 2, 2], "b": [0]}]
)
def test_schedules_of_other_blocks_or_steps_are_refused(wrong: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match=r"schedules must be of|must rise from 0"):
        predicted_error(effects_of(np.stack([line(1.0), line(2.0)])), wrong)


@pytest.mark.parametrize("updates", [0, 9, 2.0, True])
@pytest.mark.parametrize("choose", [effect_schedules, common_schedule])
def test_numbers_of_updates_that_cannot_be(choose: Callable[..., Any], updates: Any) -> None:
    with pytest.raises(ValueError, match="from 1 to the 8 calls"):
        choose(effects_of(np.stack([line(1.0), line(2.0)])), updates)
