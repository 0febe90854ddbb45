"""From the journal of `policy.py` to the recorded result: intervals, paired differences, comparisons at equal time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from policy_cells import FULL, Cell
from scipy import stats

from diffaccel.metrics.bootstrap import mean_interval
from diffaccel.metrics.policy import success_rate


class Measured(NamedTuple):
    """A cell with what was found of it in closed loop, and its time."""

    cell: Cell
    found: Mapping[str, Any]
    timing: Mapping[str, Any]


def assemble(journal: Mapping[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    """The recorded result of all cells that were measured and timed."""
    measured = [
        Measured(cell, journal[f"closed loop, {cell.name}"], journal[f"time, {cell.name}"])
        for cell in cells
        if f"closed loop, {cell.name}" in journal and f"time, {cell.name}" in journal
    ]
    full = next(one for one in measured if one.cell == FULL)
    plain = [one for one in measured if one.cell.method is None]
    entries = []
    for one in measured:
        entry = {**one.cell.as_dict(), **summary(one.found, one.timing, full.found)}
        if one.cell.method is not None and (other := best_in_time(plain, one.timing["ratio"])) is not None:
            entry["equal_time"] = {"name": other.cell.name, **paired(one.found["took"], other.found["took"])}
        if one.cell.method is not None and (nearest := nearest_in_time(plain, one)) is not None:
            entry["equal_time_error"] = nearer(one, nearest)
        entries.append(entry)
    return {"cells": entries}


def summary(found: Mapping[str, Any], timing: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """One cell: success, errors, work and time, with 95% intervals."""
    took, bound = found["took"], full["flops"] / found["flops"]
    speed_up = 1 / timing["ratio"]
    finished = [steps for steps in took if steps is not None]
    return {
        "success": success_rate([steps is not None for steps in took]).as_dict(),
        "against_full": paired(took, full["took"]),
        "median_steps_to_success": median(finished) if finished else None,
        "error": None if found["error"] is None else mean_interval(found["error"]).as_dict(),
        "error_median": None if found["error"] is None else median(found["error"]),
        "expert_error": mean_interval(found["expert_error"]).as_dict(),
        "flops": found["flops"],
        "updates": found["updates"],
        "bound": bound,
        "preparation_seconds": found["preparation_seconds"],
        "milliseconds": 1000 * median(timing["cpu_seconds"]),
        "speed_up": speed_up,
        "bound_reached": speed_up / bound,
        "time": timing,
    }


def paired(took: Sequence[int | None], other: Sequence[int | None]) -> dict[str, Any]:
    """Success less that of another cell, from equal starts and noise, and McNemar's exact test.

    Returns:
        "difference" with its 95% bootstrap interval over pairs, "won" and "lost" episodes, and "p", the chance of a
        split at least as uneven if the two were equally good.
    """
    own, others = (np.array([steps is not None for steps in some]) for some in (took, other))
    won, lost = int((own & ~others).sum()), int((others & ~own).sum())
    chance = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    difference = mean_interval((own.astype(float) - others).tolist())
    return {"difference": difference.as_dict(), "won": won, "lost": lost, "p": float(chance)}


def nearest_in_time(plain: Sequence[Measured], one: Measured) -> Measured | None:
    """The plain run with the smallest action error among those that take no longer and aim at the same actions."""
    fits = [
        other
        for other in plain
        if other.cell.reference == one.cell.reference
        and other.found["error"] is not None
        and other.timing["ratio"] <= one.timing["ratio"]
    ]
    return min(fits, key=lambda other: mean_error(other), default=None) if one.cell.reference is not None else None


def mean_error(one: Measured) -> float:
    """Mean action error of a cell."""
    return float(np.mean(one.found["error"]))


def nearer(one: Measured, other: Measured) -> dict[str, Any]:
    """How the action errors of a cell compare with those of another, observation by observation."""
    difference = np.subtract(one.found["error"], other.found["error"])
    return {
        "name": other.cell.name,
        "difference": mean_interval(difference.tolist()).as_dict(),
        "ratio": mean_error(one) / mean_error(other),
        "median": median(other.found["error"]),
    }


def best_in_time(plain: Sequence[Measured], ratio: float) -> Measured | None:
    """The plain run with most successes among those that take no longer; the one of most steps if several have."""
    fits = [one for one in plain if one.timing["ratio"] <= ratio]
    return max(
        fits, key=lambda one: (sum(steps is not None for steps in one.found["took"]), one.cell.steps), default=None
    )
