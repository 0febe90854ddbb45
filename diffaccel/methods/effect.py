"""Schedules by effect on the action: blocks compute where reuse would move the actions most, within one budget.

Pure functions of what `diffaccel.effects.measure` found. Beyond the paper of block-wise caching, which goes by how
alike features are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffaccel.segments import best_schedules, share_budget

if TYPE_CHECKING:
    from diffaccel.effects import Effects

_UNITS = 16  # that the cheapest block costs: budgets are counted in small whole units, costs are off by 1/32 at most


def effect_schedules(effects: Effects, updates: int, shared: bool = True) -> dict[str, list[int]]:
    """For each block the steps at which it computes, so that the summed effect of reuse is least.

    Effects of different blocks are summed as if they were independent, those within a segment have been added up with
    their signs.

    Args:
        effects: as measured.
        updates: computed steps, step 0 counted: of each block, or of all on average, a block's step weighed by its
            multiplications.
        shared: let blocks that matter compute more often than others that do not, within the same budget.

    Returns:
        The computed steps of each block, rising from 0; blocks in order of execution.

    Raises:
        ValueError: updates below 1 or above the number of steps.
    """
    _check(updates, effects.steps)
    if not shared:
        found = [best_schedules(cost, updates, "lower").schedule(updates) for cost in effects.costs]
        return dict(zip(effects.names, found, strict=True))
    schedules = [best_schedules(cost, effects.steps, "lower") for cost in effects.costs]
    units = _small(effects.macs)
    shares = share_budget([each.scores for each in schedules], units, updates * sum(units))
    return {name: each.schedule(share) for name, each, share in zip(effects.names, schedules, shares, strict=True)}


def common_schedule(effects: Effects, updates: int) -> list[int]:
    """The steps at which all blocks compute, so that the effect of all of them reusing in between is least.

    In a skipped step nothing of the layers runs then, and no block computes from a stream in which another is stale.

    Args:
        effects: as measured.
        updates: computed steps, step 0 counted.

    Raises:
        ValueError: updates below 1 or above the number of steps.
    """
    _check(updates, effects.steps)
    return best_schedules(effects.together, updates, "lower").schedule(updates)


def predicted_error(effects: Effects, schedules: dict[str, list[int]]) -> float:
    """Root mean square change of an action's entry that schedules are expected to make, in normalized units.

    To first order, and of blocks as if they were independent: use it to rank schedules. A schedule that is one for all
    blocks is judged by what they do together.

    Args:
        effects: as measured.
        schedules: computed steps of each block, rising from 0.

    Raises:
        ValueError: schedules of other blocks, or steps that are not within a query or do not rise from 0.
    """
    if set(schedules) != set(effects.names):
        raise ValueError(f"schedules must be of the blocks {', '.join(effects.names)}; got {', '.join(schedules)}")
    rows = [schedules[name] for name in effects.names]
    for name, row in zip(effects.names, rows, strict=True):
        if not row or row[0] != 0 or sorted(set(row)) != list(row) or row[-1] >= effects.steps:
            raise ValueError(f"the steps of {name} must rise from 0 and stay below {effects.steps}, got {list(row)}")
    one = all(row == rows[0] for row in rows)
    tables = [effects.together] if one else list(effects.costs)
    total = 0.0
    for table, row in zip(tables, rows[:1] if one else rows, strict=True):
        ends = [*(step - 1 for step in row[1:]), effects.steps - 1]
        total += float(table[row, ends].sum())
    return float(np.sqrt(total))


def _small(macs: Sequence[int]) -> list[int]:
    """Costs relative to each other, in small whole numbers."""
    return [max(1, round(_UNITS * each / min(macs))) for each in macs] if min(macs) > 0 else [1] * len(macs)


def _check(updates: int, steps: int) -> None:
    if isinstance(updates, bool) or not isinstance(updates, int) or not 1 <= updates <= steps:
        raise ValueError(f"updates must be a whole number from 1 to the {steps} calls of a query, got {updates!r}")
