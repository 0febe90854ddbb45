"""Which steps to compute: those whose gaps are forecast best, found by dynamic programming on moments of features.

Published schedules are even, after a few steps of warm-up. Features are not: they change fast in one part of a run and
hardly in another. From the moments of full runs the error that each gap would leave is known beforehand, so the best
places for a given number of computed steps are a shortest path.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from diffaccel.moments import Moments
from diffaccel.plan import Plan

_ROUNDING = 1e-5  # of moments, which are kept in float32, relative to their mean


def best_plan(features: Sequence[Moments], response: Sequence[float], computed: int) -> Plan:
    """The plan of `computed` steps that leaves the smallest sum of squared gap errors.

    The error of the gap between two computed steps is what a regression on the last two anchors leaves of
    sum_s c_s F(s), with c_s the response of the sampler over the spread of the feature: errors within a gap add up in
    the latent. Weights are one set for all dimensions.

    Args:
        features: moments of the features that are forecast, for all steps of the run.
        response: of the sampler to each step, see `diffaccel.response`.
        computed: steps to compute, at least 1; step 0 is one of them.

    Raises:
        ValueError: more steps to compute than there are, or none.
    """
    steps = len(response)
    if not 1 <= computed <= steps:
        raise ValueError(f"of {steps} steps 1 to {steps} can be computed, got {computed}")
    parts = [(moments.centred.double().mean(0), _scale(moments, response)) for moments in features]

    @cache
    def gap(older: int, newest: int, following: int) -> float:
        """Squared error left between the computed steps `newest` and `following`; `older` is -1 if there is none."""
        return sum(_gap_error(gram, scale, older, newest, following) for gram, scale in parts)

    # The cheapest way to have computed k steps, by the last two of them.
    paths: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(-1, 0): (0.0, (0,))}
    for _ in range(computed - 1):
        longer: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
        for (older, newest), (cost, path) in paths.items():
            for following in range(newest + 1, steps):
                total = cost + gap(older, newest, following)
                if (newest, following) not in longer or total < longer[newest, following][0]:
                    longer[newest, following] = (total, (*path, following))
        paths = longer
    ends = ((cost + gap(older, newest, steps), path) for (older, newest), (cost, path) in paths.items())
    return Plan.at(min(ends)[1], steps)


def _scale(moments: Moments, response: Sequence[float]) -> Tensor:
    """What one unit of error of the feature does to the latent, shape (steps,): its norm divides it by its spread."""
    spread = [float(moments.power([s]).mean().sqrt().clamp(min=1e-12)) for s in range(len(response))]
    return torch.tensor([r / one for r, one in zip(response, spread, strict=True)], dtype=torch.float64)


def _gap_error(gram: Tensor, scale: Tensor, older: int, newest: int, following: int) -> float:
    """Mean square of sum_s c_s (F(s) - F(newest)) over the gap, less what F(older) - F(newest) tells of it."""
    if following == newest + 1:
        return 0.0
    target = torch.zeros_like(scale)
    target[newest + 1 : following] = scale[newest + 1 : following]
    target[newest] = -target.sum()
    left = target @ gram @ target
    if older >= 0:
        x = torch.zeros_like(scale)
        x[older], x[newest] = 1, -1
        # Anchors that hardly differ tell nothing but rounding.
        spread = x @ gram @ x + _ROUNDING * gram.diagonal().mean()
        if spread > 0:
            left = left - (x @ gram @ target) ** 2 / spread
    return max(float(left), 0.0)
