"""Forecasters: from anchor times to one weight per anchor. Pure maths, on floats or on exact fractions.

A feature F computed at the anchor times t_0, t_1, ... (newest first) is forecast at time t as sum_j w_j F(t_j). Every
forecaster here is such a set of weights w. They need only + - * /, so `fractions.Fraction` in gives `Fraction` out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeVar

Number = TypeVar("Number", float, Fraction)


class Forecaster(Hashable, Protocol):
    """What a session needs of a forecaster. Implementations are hashable, so weights are worked out once a step."""

    @property
    def order(self) -> int:
        """Anchors used, less one. A session keeps `order + 1` features per site."""

    def weights(self, times: Sequence[Number], t: Number) -> list[Number]:
        """One weight per anchor time in `times` (newest first) for a forecast at `t`."""


@dataclass(frozen=True)
class Hold:
    """Plain reuse of the newest anchor (FORA, arXiv 2407.01425): weights 1, 0, 0, ..."""

    order: int = 0

    def weights(self, times: Sequence[Number], t: Number) -> list[Number]:
        """1 for the newest anchor, 0 for all others. Raises ValueError without an anchor."""
        history(times, self.order)
        zero = t - t
        return [zero + 1] + [zero] * (len(times) - 1)


@dataclass(frozen=True)
class Taylor:
    """TaylorSeer's forecast (arXiv 2503.06923, eq. 7) exactly as its official code computes it.

    Its recursion divides the difference of two i-th differences by the newest spacing alone. That is a backward
    difference, not an interpolating polynomial: lines are continued exactly, parabolas are not, and where the spacing
    changes the second difference is off. `Newton` is the corrected form.

    Attributes:
        order: O, the highest derivative used; it ramps up by itself while fewer than O + 1 anchors exist.
        start: anchors before this time are ignored (the official gate, first_enhance - 2); None keeps all.
    """

    order: int = 1
    start: int | None = None

    def __post_init__(self) -> None:
        check_order(self.order)

    def weights(self, times: Sequence[Number], t: Number) -> list[Number]:
        """w = sum_i x^i / i! c_{i,0}; anchors outside the history get weight 0.

        Raises:
            ValueError: no anchor, or two anchors at one time.
        """
        anchors = history(times, self.order, self.start)
        zero, one = t - t, t - t + 1
        n, x = len(anchors), t - anchors[0]
        # c_{0,j} = unit vector j: the difference of order 0 at anchor j is the feature itself
        c = [[one if k == j else zero for k in range(n)] for j in range(n)]
        w, factor = list(c[0]), one
        for i in range(1, n):
            # c_{i,j} = (c_{i-1,j} - c_{i-1,j+1}) / h_j,  h_j = t_j - t_{j+1}
            c = [
                [(a - b) / (anchors[j] - anchors[j + 1]) for a, b in zip(c[j], c[j + 1], strict=True)]
                for j in range(len(c) - 1)
            ]
            factor = factor * x / i
            w = [w_k + factor * c_k for w_k, c_k in zip(w, c[0], strict=True)]
        return w + [zero] * (len(times) - n)


@dataclass(frozen=True)
class Newton:
    """Polynomial extrapolation through the last `order + 1` anchors: exact for polynomials up to `order`, any spacing.

    Newton's form of the interpolating polynomial, written as Lagrange weights. `start` as in `Taylor`.
    """

    order: int = 1
    start: int | None = None

    def __post_init__(self) -> None:
        check_order(self.order)

    def weights(self, times: Sequence[Number], t: Number) -> list[Number]:
        """w_j = prod_{l != j} (t - t_l) / (t_j - t_l). Raises ValueError as `Taylor.weights`."""
        anchors = history(times, self.order, self.start)
        w = []
        for j, t_j in enumerate(anchors):
            w_j = t - t + 1
            for l, t_l in enumerate(anchors):  # noqa: E741 (the formula's index)
                if l != j:
                    w_j = w_j * (t - t_l) / (t_j - t_l)
            w.append(w_j)
        return w + [t - t] * (len(times) - len(anchors))


def history(times: Sequence[Number], order: int, start: int | None = None) -> list[Number]:
    """The anchors a forecast of `order` uses: the newest, and up to `order` older ones not before `start`."""
    if not times:
        raise ValueError("a forecast needs at least one anchor time")
    anchors = [times[0]]
    for time in times[1 : order + 1]:
        if start is not None and time < start:
            break
        anchors.append(time)
    if len(set(anchors)) < len(anchors):
        raise ValueError(f"anchor times must differ, got {[str(time) for time in times]}")
    return anchors


def check_order(order: int) -> None:
    """Raise ValueError for a negative order."""
    if order < 0:
        raise ValueError(f"order must be 0 (plain reuse) or more, got {order}")
