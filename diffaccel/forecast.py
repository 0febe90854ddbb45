"""Forecasters: from anchor times to one weight per anchor. Pure maths, on floats or on exact fractions.

A feature F computed at the anchor times t_0, t_1, ... (newest first) is forecast at time t as sum_j w_j F(t_j). Every
forecaster here is such a set of weights w, or one set per group of feature dimensions (`Grouped`). They need only
+ - * /, so `fractions.Fraction` in gives `Fraction` out.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol, TypeVar

Number = TypeVar("Number", float, Fraction)


class Forecaster(Hashable, Protocol):
    """What a session needs of a forecaster. Implementations are hashable, so weights are worked out once a step.

    `Grouped` has the same two members, but its `weights` are one such list per group of feature dimensions.
    """

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


class Blend(NamedTuple):
    """F0 + a s1 + b s2 one even spacing ahead, with s1 = F0 - F1 and s2 = F1 - F2 the last two differences.

    At other offsets and spacings x = t - t_0, h0 = t_0 - t_1, h1 = t_1 - t_2, with slopes v0 = s1 / h0, v1 = s2 / h1:
    slope form      F0 + x (a v0 + b v1)
    curvature form  F0 + x v0 + q (v0 - v1),  q = 2 (a - 1) x^2 / (h0 + h1);  here b = 1 - a
    """

    a: Fraction
    b: Fraction
    curved: bool = False

    @property
    def anchors(self) -> int:
        """How many anchors carry weight."""
        return 3 if self.b else 2 if self.a else 1


# The solvers of HyCa (arXiv 2510.04188) as blends of slopes. The paper names the families; third-party code has the
# numbers, or textbook steps with backward slopes give them. An implicit slope comes from the AB2 prediction (am2, am3),
# or is extrapolated, frozen at the last one, or dropped (bdf2).
BLENDS: Mapping[str, Blend] = {
    "reuse": Blend(Fraction(0), Fraction(0)),
    "rk2": Blend(Fraction(1, 2), Fraction(1, 2)),
    "tf1": Blend(Fraction(1), Fraction(0)),
    "ab2": Blend(Fraction(3, 2), Fraction(-1, 2), curved=True),
    "tf2": Blend(Fraction(3, 2), Fraction(-1, 2), curved=True),
    "am2": Blend(Fraction(5, 4), Fraction(-1, 4), curved=True),
    "am3": Blend(Fraction(31, 24), Fraction(-7, 24), curved=True),
    "bdf2_extrapolated": Blend(Fraction(5, 3), Fraction(-2, 3), curved=True),
    "bdf2_frozen": Blend(Fraction(1), Fraction(0)),
    "bdf2_zero_slope": Blend(Fraction(1, 3), Fraction(0)),
}
POOL = ("rk2", "tf1", "ab2", "am3", "bdf2_extrapolated", "reuse")
STRICT_POOL = ("rk2", "tf1", "ab2", "am3", "bdf2_zero_slope")


@dataclass(frozen=True)
class Solver:
    """One step of an ODE solver on the last three anchors, named as in `BLENDS`.

    With fewer anchors than it needs it is tf1 on two and reuse on one.

    Attributes:
        name: a key of `BLENDS`.
        start: as in `Taylor`.
        needs: anchors below which it falls back; None means those that carry weight. 3 lets all solvers of a pool,
            reuse and bdf2_zero_slope included, start as tf1.
    """

    name: str
    start: int | None = None
    needs: int | None = None

    def __post_init__(self) -> None:
        if self.name not in BLENDS:
            raise ValueError(f"unknown solver {self.name!r}: choose one of {', '.join(BLENDS)}")
        least = BLENDS[self.name].anchors
        if self.needs is not None and not least <= self.needs <= 3:
            raise ValueError(f"{self.name} weights {least} anchors: needs must be {least} to 3, got {self.needs}")

    @property
    def order(self) -> int:
        """Anchors needed, less one."""
        return (self.needs or BLENDS[self.name].anchors) - 1

    @property
    def degree(self) -> int:
        """Degree of the polynomials continued exactly; the error shrinks with the spacing h as h^(degree + 1).

        1 for lines, of all solvers with a + b = 1; their error is (2 - a) h^2 F'' to leading order, so none of the
        pool, where a < 2, reaches h^3. 0 for reuse and bdf2_zero_slope, whose error is (1 - a) h F'.
        """
        blend = BLENDS[self.name]
        return 1 if blend.a + blend.b == 1 else 0

    def weights(self, times: Sequence[Number], t: Number) -> list[Number]:
        """Those of `Blend`; anchors outside the history or not needed get weight 0. Raises as `Taylor.weights`."""
        anchors = history(times, self.order, self.start)
        n = len(anchors)
        blend = BLENDS[self.name if n > self.order else ("reuse", "tf1")[n - 1]]
        x, one = t - anchors[0], t - t + 1
        a, b = (one * part.numerator / part.denominator for part in (blend.a, blend.b))
        factors = (x * a, x * b)  # of v0 and v1
        if blend.curved:
            q = 2 * (a - 1) * x * x / (anchors[0] - anchors[2])
            factors = (x + q, -q)
        w = [one] + [t - t] * (len(times) - 1)
        for j, factor in enumerate(factors[: n - 1]):
            # v_j = (F_j - F_{j+1}) / h_j
            share = factor / (anchors[j] - anchors[j + 1])
            w[j], w[j + 1] = w[j] + share, w[j + 1] - share
        return w


SOLVERS: Mapping[str, Solver] = {name: Solver(name) for name in BLENDS}


@dataclass(frozen=True)
class Grouped:
    """One forecaster per group of feature dimensions."""

    forecasters: tuple[Forecaster, ...]

    def __post_init__(self) -> None:
        if not self.forecasters:
            raise ValueError("a grouped forecast needs at least one forecaster")

    @property
    def order(self) -> int:
        """The highest order of all groups."""
        return max(forecaster.order for forecaster in self.forecasters)

    def weights(self, times: Sequence[Number], t: Number) -> list[list[Number]]:
        """One row per group, one weight per anchor time; 0 for anchors older than a group's forecaster uses."""
        rows = [forecaster.weights(times[: forecaster.order + 1], t) for forecaster in self.forecasters]
        return [row + [t - t] * (len(times) - len(row)) for row in rows]


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
