"""How many Dash and Dot steps a budget buys, and in which order they come. Pure arithmetic: exact on fractions.

A budget is counted in LSD, latencies of one step of Dash ("latency per step of the baseline"): a plain run of n steps
costs n. Dot is N times faster than Dash, so k_dash + k_dot steps cost k_dash + k_dot / N.

Section 3 of Li, Fan, Yao, "Morse", ICML 2025; where Dash steps lie is ours, the paper prints (2, 4) only.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, TypeAlias

Number: TypeAlias = Any  # int, float or Fraction; mixed ones become what Python makes of them

_NEAR = 1e-9  # below a whole number by no more than rounding


def step_order(k_dash: int, k_dot: int) -> str:
    """Who runs at each step, "D" for Dash and "d" for Dot: "DddDdd" for 2 and 4.

    Raises:
        ValueError: no Dash step, or a negative number.
    """
    computed = set(dash_index(k_dash, k_dot))
    return "".join("D" if step in computed else "d" for step in range(k_dash + k_dot))


def dash_index(k_dash: int, k_dot: int) -> list[int]:
    """The steps at which Dash runs, spread evenly from the first on: floor(j K / k_dash).

    Raises:
        ValueError: no Dash step, or a negative number.
    """
    if k_dash < 1 or k_dot < 0:
        raise ValueError(f"a run needs a Dash step first, and no fewer than 0 Dot steps, got {k_dash} and {k_dot}")
    return [j * (k_dash + k_dot) // k_dash for j in range(k_dash)]


def lsd(k_dash: Number, k_dot: Number, n: Number) -> Number:
    """What a run costs, in latencies of one Dash step.

    Args:
        k_dash: Dash steps.
        k_dot: Dot steps, which may be a fraction of one.
        n: N, how many times faster Dot is than Dash.

    Raises:
        ValueError: N is not positive.
    """
    if n <= 0:
        raise ValueError(f"N must be positive, got {n}")
    return k_dash + _over(k_dot, n)


def bound(k_dash: Number, k_dot: Number, n: Number) -> Number:
    """The speed-up if Dot were as good as Dash: steps for one latency of Dash. Recommended are 2 to 3."""
    return _over(k_dash + k_dot, lsd(k_dash, k_dot, n))


def exchange(n: Number, steps: Number, bound: Number) -> tuple[Number, Number]:
    """How a plain run of so many steps becomes one of the same latency with this bound.

    Args:
        n: N, how many times faster Dot is than Dash.
        steps: of the plain run.
        bound: steps of the run over steps of the plain one, below N.

    Returns:
        the Dash steps k that are exchanged for N k Dot steps, and the Dot steps there are for each Dash step that is
        left.

    Raises:
        ValueError: the bound is below 1, or N is too small for it.
    """
    if bound < 1:
        raise ValueError(f"bound must be at least 1, got {bound}: it is steps over latencies of a Dash step")
    if bound >= n:
        raise ValueError(
            f"a bound of {float(bound):g} cannot be reached with a Dot that is N = {float(n):.3g} times faster than "
            "Dash: even Dot steps alone have a bound of N. Give a bound between 1 and N, or dots_per_dash, or use a "
            "smaller Dot"
        )
    return _over(steps * (bound - 1), n - 1), _over(n * (bound - 1), n - bound)


def split(lsd: Number, n: Number, dots_per_dash: Number) -> tuple[int, int]:
    """Dash and Dot steps that fill a budget, one Dash step at least.

    Args:
        lsd: the budget, in latencies of one Dash step.
        n: N, how many times faster Dot is than Dash.
        dots_per_dash: Dot steps for each Dash step, at most; on average.

    Raises:
        ValueError: a budget below one Dash step, or a negative number of Dot steps.
    """
    if lsd < 1 - _NEAR:
        raise ValueError(f"lsd must be at least 1, the Dash step a run begins with, got {lsd}")
    if dots_per_dash < 0:
        raise ValueError(f"dots_per_dash must be at least 0, got {dots_per_dash}")
    k_dash = max(1, _floor(_over(lsd, 1 + _over(dots_per_dash, n))))
    return k_dash, min(_floor(n * (lsd - k_dash)), -_floor(-dots_per_dash * k_dash))


def dash_steps(lsd: Number, steps: int, n: Number) -> Number:
    """Dash steps, as a real number, of a run of so many steps that costs `lsd`; below 1 or above `steps` if none does.

    Raises:
        ValueError: Dot is not faster than Dash.
    """
    if n <= 1:
        raise ValueError(f"Dot must be faster than Dash to save anything, but N = {float(n):.3g}: use a smaller Dot")
    return _over(lsd - _over(steps, n), 1 - _over(1, n))


def latency_ratio(dash_seconds: Number, dot_seconds: Number) -> Number:
    """N: how many times faster one step of Dot is than one of Dash.

    Raises:
        ValueError: seconds that are not positive.
    """
    if dash_seconds <= 0 or dot_seconds <= 0:
        raise ValueError(f"seconds must be positive, got {dash_seconds} for Dash and {dot_seconds} for Dot")
    return _over(dash_seconds, dot_seconds)


def _over(a: Number, b: Number) -> Number:
    return Fraction(a, b) if isinstance(a, int) and isinstance(b, int) else a / b


def _floor(value: Number) -> int:
    return math.floor(value + _NEAR) if isinstance(value, float) else math.floor(value)
