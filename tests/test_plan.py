"""Does a plan compute the steps it should, refuse what makes no sense, and print what it will do?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffaccel.plan import Plan

ORACLE = json.loads((Path(__file__).parent / "oracles" / "taylorseer.json").read_text())
SCHEDULES = [case for case in ORACLE["cases"] if case["kind"] == "schedule"]


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case["id"])
def test_official_schedule(case: dict[str, Any]) -> None:
    setting = case["setting"]
    plan = Plan.every(setting["interval"], setting["steps"], setting["first_enhance"])
    # The DiT code counts steps down; ours count in order of execution.
    first = setting["steps"] - 1 if setting["index"] == "descending" else 0
    assert plan.computed() == [abs(first - step) for step in case["full_steps"]]


def test_diffusers_schedule_computes_the_step_after_the_first_skipped_one() -> None:
    assert Plan.diffusers(5, 20, before=3).computed() == [0, 1, 2, 4, 9, 14, 19]


@pytest.mark.parametrize("steps", range(1, 12))
@pytest.mark.parametrize("interval", [1, 2, 5])
@pytest.mark.parametrize("warmup", [1, 3])
def test_every_number_of_steps_has_a_plan(steps: int, interval: int, warmup: int) -> None:
    plan = Plan.every(interval, steps, warmup)
    assert plan.steps == steps
    assert plan.bound == pytest.approx(steps / len(plan.computed()))
    assert interval > 1 or plan.bound == 1


def test_the_last_step_is_computed_if_asked() -> None:
    assert Plan.every(4, 28, 3).computed() == [0, 1, 2, 6, 10, 14, 18, 22, 26]
    assert Plan.every(4, 28, 3, last=True).computed() == [0, 1, 2, 6, 10, 14, 18, 22, 26, 27]
    assert Plan.every(5, 28, 3, last=True) == Plan.every(5, 28, 3)  # 27 is on the grid


def test_a_row_for_every_site() -> None:
    plan = Plan(((True, False, True), (True, True, False)))
    assert [plan.computes(site, 1) for site in (0, 1)] == [False, True]
    assert plan.computed(1) == [0, 1]
    assert plan.bound == pytest.approx(6 / 4)


def test_one_row_holds_for_all_sites() -> None:
    plan = Plan.at([0, 2], 4)
    assert [plan.computes(site, 2) for site in (0, 17)] == [True, True]


def test_print() -> None:
    assert str(Plan.every(6, 12, 3)) == ("step       0         10\nall sites  ###.....#...  4 of 12\nbound 3.00x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan(()), "at least one row"),
        (lambda: Plan(((True, False), (True,))), "one length"),
        (lambda: Plan(((False, True),)), "does not compute step 0"),
        (lambda: Plan.at([0, 9], 8), r"steps \[9\] are outside"),
        (lambda: Plan.every(0, 8), "interval must be at least 1"),
        (lambda: Plan.every(2, 0), "steps must be at least 1"),
        (lambda: Plan.every(2, 8, 0), "warmup must be at least 1"),
        (lambda: Plan.every(2, 8).check(9, [None]), "covers 8 steps but this run has 9"),
        (lambda: Plan(((True,), (True,))).check(1, [None] * 3), "2 rows for 3 sites"),
    ],
)
def test_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
