"""The search as pure functions of a table: what is worth a run, and what is chosen.

Runs are dear, so every candidate is first forecast from moments (`diffaccel.auto.candidates`). Forecasts are right up
to a number of dB that candidates of one kind share, so each run corrects those of its neighbours, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from diffaccel.auto.quality import Quality

SLACK = 1.0
"""dB by which an estimate may fall short and the candidate be worth a run nevertheless."""


@dataclass(frozen=True)
class Target:
    """What is to be reached: a speed-up of whole calls of the pipeline, or a fidelity in dB. One of them is None."""

    speedup: float | None = None
    psnr: float | None = None

    def __str__(self) -> str:
        return f"speed-up {self.speedup:g}x" if self.speedup is not None else f"PSNR {self.psnr:g} dB"

    @property
    def slug(self) -> str:
        """For names of files: "speedup-4"."""
        return f"speedup-{self.speedup:g}" if self.speedup is not None else f"psnr-{self.psnr:g}"


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        name: the method as the command line takes it.
        family: candidates whose forecasts are off by the same number of dB, or change slowly with `computed`.
        level: of its sites.
        computed: steps it computes.
        steps: of the run.
        forecast: of its PSNR in dB, up to what its family shares.
        quality: what runs showed; None if none was made.
        timed: part of the full run's time that was measured; None if it was not.
    """

    name: str
    family: str
    level: str
    computed: int
    steps: int
    forecast: float
    quality: Quality | None = None
    timed: float | None = None

    @property
    def pace(self) -> tuple[str, str]:
        """Kind and level: a skipped step saves the same time in all candidates that share them."""
        return self.name.partition(":")[0], self.level


def cost(rows: Sequence[Row], row: Row) -> float:
    """Expected part of the full run's time: each skipped step saves what it saved those of its pace that were timed.

    Where nothing of this pace was timed, the most that it saves in any other; before the first, its share of the run.
    """
    saved: dict[tuple[str, str], list[float]] = {}
    for other in rows:
        if other.timed is not None:
            saved.setdefault(other.pace, []).append((1 - other.timed) / (other.steps - other.computed))
    known = saved.get(row.pace)
    each = median(known) if known else max((median(of) for of in saved.values()), default=1 / row.steps)
    return max(1 - each * (row.steps - row.computed), 1 / row.steps**2)


def figure(quality: Quality, target: Target) -> float:
    """What counts: for a fidelity the pessimistic end of the mean, to find the most faithful the mean."""
    return quality.mean if target.psnr is None else quality.low


def estimate(rows: Sequence[Row], row: Row, target: Target) -> float:
    """What the figure of a candidate is, or probably is, from runs of its family at other numbers of computed steps.

    Of a family that was never run, the best that others of its level make likely; infinite before the first run.
    """
    if row.quality is not None:
        return figure(row.quality, target)
    run = [other for other in rows if other.quality is not None]
    for near in (
        [other for other in run if other.family == row.family],
        [other for other in run if other.level == row.level],
        run,
    ):
        if near:
            return row.forecast + max(_offset(near, family, row.computed, target) for family in _families(near))
    return float("inf")


def next_trial(rows: Sequence[Row], target: Target) -> Row | None:
    """The candidate to run next; None if no further run is likely to change the choice."""
    untried = [row for row in rows if row.quality is None]
    chosen = choose(rows, target)
    if target.psnr is not None:
        limit = float("inf") if chosen is None else cost(rows, chosen)
        hopeful = [row for row in untried if cost(rows, row) < limit]
        promising = [row for row in hopeful if estimate(rows, row, target) >= target.psnr - SLACK]
        if chosen is not None and not promising:
            # What takes as long and may be nearer to the full run is as good a choice.
            least = estimate(rows, chosen, target) - SLACK
            promising = [row for row in untried if cost(rows, row) == limit and estimate(rows, row, target) > least]
        if promising:
            return min(promising, key=lambda row: (cost(rows, row), -estimate(rows, row, target), row.name))
        # Nothing reaches it, it seems: what comes nearest is told, so it is run.
        best = max((estimate(rows, row, target) for row in rows if row.quality is not None), default=-float("inf"))
        untried = [] if chosen is not None else [row for row in untried if estimate(rows, row, target) > best]
    else:
        least = -float("inf") if chosen is None else estimate(rows, chosen, target) - SLACK
        untried = [row for row in untried if _fast_enough(rows, row, target) and estimate(rows, row, target) > least]
    return max(untried, key=lambda row: (estimate(rows, row, target), -cost(rows, row), row.name), default=None)


def choose(rows: Sequence[Row], target: Target) -> Row | None:
    """Of the candidates that were run, the fastest that reaches the fidelity, or the most faithful that is fast enough.

    None if there is none. What was timed counts by its time, others by their `cost`; what is not faster than the full
    run is out of question.
    """
    run = [(row, row.quality) for row in rows if row.quality is not None and _time(rows, row) < 1]
    if target.psnr is not None:
        reached = [
            (cost(rows, row), -quality.mean, row.name, row) for row, quality in run if quality.low >= target.psnr
        ]
    else:
        fast = [(row, quality) for row, quality in run if _fast_enough(rows, row, target)]
        reached = [(-quality.mean, cost(rows, row), row.name, row) for row, quality in fast]
    return min(reached, key=lambda entry: entry[:3])[3] if reached else None


def nearest(rows: Sequence[Row], target: Target) -> Row:
    """What comes nearest to a target that nothing reaches: the most faithful that was run, or the fastest of all."""
    if target.psnr is not None:
        return max((row for row in rows if row.quality is not None), key=lambda row: estimate(rows, row, target))
    return min(rows, key=lambda row: (_time(rows, row), row.name))


def _fast_enough(rows: Sequence[Row], row: Row, target: Target) -> bool:
    return target.speedup is not None and _time(rows, row) * target.speedup <= 1


def _time(rows: Sequence[Row], row: Row) -> float:
    return cost(rows, row) if row.timed is None else row.timed


def _families(rows: Sequence[Row]) -> list[str]:
    return sorted({row.family for row in rows})


def _offset(run: Sequence[Row], family: str, computed: int, target: Target) -> float:
    """By how much forecasts of a family are too low at so many computed steps: between runs a straight line."""
    known: dict[int, list[float]] = {}
    for row in run:
        if row.family == family and row.quality is not None:
            known.setdefault(row.computed, []).append(figure(row.quality, target) - row.forecast)
    places = sorted(known)
    return float(np.interp(computed, places, [median(known[place]) for place in places]))
