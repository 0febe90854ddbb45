"""Which steps to compute when each of the others repeats the last computed: segments of a run, by dynamic programme.

A schedule 0 = u_1 < ... < u_M of K steps cuts the run into M segments; one begins at each computed step and lasts until
the next. Where the worth of a schedule is the sum of its segments' worth, the best of all schedules is found exactly,
for every M at once. A second dynamic programme shares one budget of computation among blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Better = Literal["higher", "lower"]

_MOST_UNITS = 20_000_000  # of a budget that is shared: a table of so many numbers is held for every block


@dataclass(frozen=True, eq=False)
class Schedules:
    """The best schedule for every number of computed steps.

    Attributes:
        scores: worth of the best schedule of 1, 2, ... computed steps, shape (most,).
        ends: where the segment before ends, shape (most, steps): in the best way to cut steps 0 to e into m segments,
            the last but one ends with step `ends[m - 1, e]` (-1 if m is 1).
    """

    scores: Array
    ends: npt.NDArray[np.intp]

    @property
    def most(self) -> int:
        """The largest number of computed steps there is a schedule for."""
        return len(self.scores)

    def score(self, updates: int) -> float:
        """Worth of the best schedule of so many computed steps; ValueError unless 1 <= updates <= `most`."""
        return float(self.scores[self._checked(updates) - 1])

    def schedule(self, updates: int) -> list[int]:
        """The computed steps, rising from 0, `updates` of them; ValueError unless 1 <= updates <= `most`."""
        end, starts = self.ends.shape[1] - 1, []
        for row in self.ends[self._checked(updates) - 1 :: -1]:
            end = int(row[end])
            starts.append(end + 1)
        return starts[::-1]

    def _checked(self, updates: int) -> int:
        if not 1 <= updates <= self.most:
            raise ValueError(f"schedules of 1 to {self.most} computed steps were sought, got {updates}")
        return updates


def best_schedules(value: npt.ArrayLike, most: int, better: Better = "higher") -> Schedules:
    """The schedules of 1 to `most` computed steps whose segments are worth most, or cost least.

    With D[m][e] the best worth of steps 0 to e cut into m segments,

        D[1][e] = value[0, e]        D[m][e] = best over p < e of D[m - 1][p] + value[p + 1, e]

    in O(most * steps^2), vectorised. Of schedules that are worth the same, the one whose segments end earlier, seen
    from the last, is taken.

    Args:
        value: shape (steps, steps), `value[a, e]` is what the segment is worth that is computed at step a and lasts
            through step e >= a. Entries with e < a are not read.
        most: the largest number of computed steps wanted, 1 to steps.
        better: "higher" if value is worth, "lower" if it is a cost.

    Raises:
        ValueError: a table that is not square or not finite, a number of computed steps that cannot be, or another
            word than the two.
    """
    table = np.asarray(value, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not table.size:
        raise ValueError(f"values of segments must have shape (steps, steps), got {table.shape}")
    steps = len(table)
    if not 1 <= most <= steps:
        raise ValueError(f"of {steps} steps 1 to {steps} can be computed, got {most}")
    if better not in ("higher", "lower"):
        raise ValueError(f'better must be "higher" or "lower", got {better!r}')
    if not np.isfinite(table[np.triu_indices(steps)]).all():
        raise ValueError("values of segments hold NaN or infinity: check the features they were made from")
    sign = 1.0 if better == "lower" else -1.0
    # cost[p, e]: of the segment that follows one that ends with p, so that begins with p + 1.
    cost = np.full((steps, steps), np.inf)
    cost[:-1] = sign * table[1:]
    cost[np.tril_indices(steps)] = np.inf
    reached = sign * table[0]
    scores, ends = [reached[-1]], [np.full(steps, -1, dtype=np.intp)]
    for _ in range(1, most):
        longer = reached[:, None] + cost
        ends.append(longer.argmin(0))  # the first of equals
        reached = longer.min(0)
        scores.append(reached[-1])
    return Schedules(sign * np.array(scores), np.stack(ends))


def share_budget(scores: Sequence[npt.ArrayLike], costs: Sequence[int], budget: int) -> list[int]:
    """How often each block is computed, so that the summed score is least within a budget: exact, by dynamic programme.

    The multiple-choice knapsack problem. The work is O(blocks * steps * budget), the budget counted in units of the
    costs' greatest common divisor; so give costs relative to each other in small integers. Of choices with equal
    scores, the one with fewer updates of the later blocks is taken.

    Args:
        scores: of each block, what 1, 2, ... updates leave of error (lower is better), one number each. They need not
            fall.
        costs: of each block, what one update costs, at least 1.
        budget: sum over blocks of cost times updates may not exceed it.

    Returns:
        Updates of each block, from 1 to the length of its scores.

    Raises:
        ValueError: no block, lengths that differ, a score that is not finite, a cost below 1, a budget that does not
            pay for one update of each block, or one of too many units to be tabled.
    """
    tables = [np.asarray(score, dtype=np.float64) for score in scores]
    _check_shares(tables, costs, budget)
    unit = math.gcd(*costs)
    units = [cost // unit for cost in costs]
    # More than all updates of all blocks cost cannot be spent.
    most = min(budget // unit, sum(cost * len(table) for cost, table in zip(units, tables, strict=True)))
    if most * len(units) > _MOST_UNITS:
        raise ValueError(
            f"a budget of {most} units over {len(units)} blocks needs too large a table: round the costs to small "
            f"integers relative to each other (their greatest common divisor is {unit})"
        )
    # least[c]: the summed score of the blocks so far, for at most c units.
    least, choices = np.zeros(most + 1), []
    for table, cost in zip(tables, units, strict=True):
        longer, choice = np.full(most + 1, np.inf), np.zeros(most + 1, dtype=np.int32)
        for updates, score in enumerate(table[: most // cost], start=1):
            spent = cost * updates
            candidate = least[: most + 1 - spent] + score
            lower = candidate < longer[spent:]
            np.copyto(longer[spent:], candidate, where=lower)
            np.copyto(choice[spent:], updates, where=lower)
        least = longer
        choices.append(choice)
    shares, left = [], most
    for choice, cost in zip(reversed(choices), reversed(units), strict=True):
        shares.append(int(choice[left]))
        left -= cost * shares[-1]
    return shares[::-1]


def _check_shares(tables: Sequence[Array], costs: Sequence[int], budget: int) -> None:
    if not tables or len(tables) != len(costs):
        raise ValueError(f"give scores and one cost for each block, at least one: got {len(tables)} and {len(costs)}")
    for i, (table, cost) in enumerate(zip(tables, costs, strict=True)):
        if table.ndim != 1 or not table.size or not np.isfinite(table).all():
            raise ValueError(f"scores of block {i} must be one finite number for each number of updates, from 1 on")
        if cost < 1:
            raise ValueError(f"one update of block {i} costs {cost}: costs are integers of at least 1")
    if budget < sum(costs):
        raise ValueError(
            f"a budget of {budget} does not pay for one update of each of the {len(costs)} blocks: give at least "
            f"{sum(costs)}"
        )
