"""How fast the candidates are: timed in turn, and which plain runs take as long as each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from diffaccel.evaluation.candidates import Candidate
from diffaccel.evaluation.subject import Subject
from diffaccel.metrics.speed import Timing, alternate

PILOT_ROUNDS = 2
"""Timed runs of each by which the plain runs of equal time are guessed, before all are timed together."""

Times = Mapping[str, Timing]
"""By name of the candidate."""


@dataclass(frozen=True)
class Clock:
    """Which time counts.

    On a CPU that is processor time, which other work on the machine cannot take; on a GPU it is wall time.
    """

    cpu: bool

    @property
    def name(self) -> str:
        """For tables."""
        return "processor time" if self.cpu else "wall time"

    def seconds(self, timing: Timing) -> list[float]:
        """The times that count."""
        return timing.cpu_seconds if self.cpu else timing.seconds

    def median(self, timing: Timing) -> float:
        """Their median."""
        return float(np.median(self.seconds(timing)))


def measure(subject: Subject, candidates: Sequence[Candidate], rows: slice, rounds: int, progress: bool) -> Times:
    """Time whole calls of the pipeline that draw these rows, in turn after a warm-up, waiting for the device.

    Putting an acceleration on and taking it off, which users do once, is not part of the time.
    """
    runs = {candidate.name: partial(subject.pictures, candidate, rows) for candidate in candidates}
    during = {candidate.name: partial(candidate.applied, subject.pipe) for candidate in candidates}
    return alternate(runs, rounds, warmup=1, device=subject.pipe.device, progress=progress, during=during)


def guess_equal_steps(plain: Mapping[int, float], seconds: float, most: int) -> int:
    """Steps of the plain run that takes these seconds, by a straight line through plain runs' times.

    Args:
        plain: median seconds by number of steps, of two plain runs or more.
        seconds: of the method.
        most: most steps that may be answered.

    Returns:
        A number of steps from 1 to `most`, rounded down.
    """
    slope, start = np.polyfit(list(plain), list(plain.values()), 1)
    if slope <= 0:  # noise drowns the steps, so nothing can be said
        return most
    return int(np.clip(np.floor((seconds - start) / slope + 1e-9), 1, most))


def plain_at_equal_time(
    clock: Clock, times: Times, plain: Mapping[str, int], full: str, name: str, least: int
) -> str | None:
    """The plain run with the most steps whose measured time is not above that of the candidate `name`.

    Ratios to the full run are compared, each the median over rounds, since they do not drift with the machine. A plain
    run that computes no more than the method cannot take longer, whatever noise says.

    Args:
        clock: which time counts.
        times: of all candidates.
        plain: number of steps of the plain runs by name.
        full: name of the full run.
        name: of the accelerated candidate.
        least: steps of the plain run that computes as much as it.
    """
    limit = times[name].ratio(times[full], clock.cpu)
    fits = [other for other, n in plain.items() if n <= least or times[other].ratio(times[full], clock.cpu) <= limit]
    return max(fits, key=plain.__getitem__, default=None)


def as_data(clock: Clock, timing: Timing, full: Timing) -> dict[str, Any]:
    """A candidate's time for the result, with its speed-up over the full run: median, lowest and highest round."""
    seconds, ratios = clock.seconds(timing), timing.ratios(full, clock.cpu)
    return {
        "clock": clock.name,
        "seconds": seconds,
        "wall_seconds": timing.seconds,
        "median": float(np.median(seconds)),
        "low": min(seconds),
        "high": max(seconds),
        "rounds": len(seconds),
        "speedup": 1 / timing.ratio(full, clock.cpu),
        "speedup_low": 1 / max(ratios),
        "speedup_high": 1 / min(ratios),
    }
