"""How the paper turns quality at some latencies into a speed-up: by interpolation of the baseline.

The baseline is a piecewise linear curve of a metric over latency, in latencies of one full step (LSD) or in seconds. A
point is as much faster as the baseline needs longer for the same value of the metric. Pure arithmetic: exact on
fractions.

Chao Li, Jiawei Fan, Anbang Yao, "Morse: Dual-Sampling for Lossless Acceleration of Diffusion Models", ICML 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal, TypeAlias

Number: TypeAlias = int | float | Fraction
Point: TypeAlias = tuple[Any, Any]
"""Latency and metric, numbers of one kind."""
Better: TypeAlias = Literal["lower", "higher"]


@dataclass(frozen=True)
class Speedups:
    """What `speedups` found, one entry a point where there is a list.

    Attributes:
        equivalent: the least latency at which the baseline is as good; None where the point was left out.
        speedups: that over the point's own latency; None where the point was left out.
        mean: of those that were not left out; None if all were.
        left_out_better: points that are better than the baseline ever is.
        left_out_worse: points that are worse than the baseline's first point. The mean is over the others only, so it
            says nothing about these.
    """

    equivalent: tuple[Number | None, ...]
    speedups: tuple[Number | None, ...]
    mean: Number | None
    left_out_better: int
    left_out_worse: int


def speedups(baseline: Sequence[Point], points: Sequence[Point], better: Better = "lower") -> Speedups:
    """The speed-up of each point over a baseline that is measured at some latencies.

    Where the baseline takes a value more than once, as some metrics do that get worse again with more steps, the first
    time counts: it is the cheapest run that is as good.

    Args:
        baseline: latency and metric of at least two runs, in any order.
        points: latency and metric of the runs to be judged.
        better: which values of the metric are good, "lower" or "higher".

    Raises:
        ValueError: fewer than two baseline runs or two at one latency, no point, a latency that is not positive, a
            number that is not finite, or another word than the two.
    """
    runs = _checked(baseline, better)
    if len(runs) < 2:
        raise ValueError("a baseline to interpolate needs runs at two latencies or more")
    if any(before[0] == after[0] for before, after in pairwise(runs)):
        raise ValueError("the baseline holds two runs at one latency: give one of them")
    sign = -1 if better == "higher" else 1
    curve = [(latency, sign * value) for latency, value in runs]
    judged = [(latency, sign * value) for latency, value in _checked(points, better, ordered=False)]
    if not judged:
        raise ValueError("there is no point to be judged")
    worse = sum(value > curve[0][1] for _, value in judged)
    equivalent = [None if value > curve[0][1] else _reached(curve, value) for _, value in judged]
    found = [None if same is None else _over(same, own) for same, (own, _) in zip(equivalent, judged, strict=True)]
    counted = [value for value in found if value is not None]
    mean = _over(sum(counted), len(counted)) if counted else None
    return Speedups(tuple(equivalent), tuple(found), mean, found.count(None) - worse, worse)


def front(points: Sequence[Point], better: Better = "lower") -> list[Point]:
    """The points that are better than every one that is no slower, from the fastest on: a baseline of many methods.

    Raises:
        ValueError: as `speedups` about numbers.
    """
    sign = -1 if better == "higher" else 1
    kept: list[Point] = []
    for latency, value in sorted(_checked(points, better), key=lambda point: (point[0], sign * point[1])):
        if not kept or sign * value < sign * kept[-1][1]:
            kept.append((latency, value))
    return kept


def _reached(curve: Sequence[Point], value: Any) -> Any:
    """The least latency at which a curve that starts at or above `value` comes down to it; None if it never does."""
    if curve[0][1] == value:
        return curve[0][0]
    for (start, above), (end, below) in pairwise(curve):
        if below <= value:
            return start + _over((end - start) * (above - value), above - below)
    return None


def _over(a: Any, b: Any) -> Any:
    """A quotient that stays exact for whole numbers."""
    return Fraction(a, b) if isinstance(a, int) and isinstance(b, int) else a / b


def _checked(points: Sequence[Point], better: str, ordered: bool = True) -> list[Point]:
    if better not in ("lower", "higher"):
        raise ValueError(f"better must be 'lower' or 'higher', got {better!r}")
    for latency, value in points:
        if not (0 < latency < float("inf")):
            raise ValueError(f"a latency must be positive and finite, got {latency}")
        if not (-float("inf") < value < float("inf")):
            raise ValueError(f"a metric must be a finite number, got {value} at latency {latency}")
    return sorted(points, key=lambda point: point[0]) if ordered else list(points)
