"""Which steps to compute: those whose gaps are forecast best, found by dynamic programming on moments of features.

Published schedules are even, after a few steps of warm-up. Features are not: they change fast in one part of a run and
hardly in another. From the moments of full runs the error that each gap would leave is known beforehand, so the best
places for a given number of computed steps are a shortest path.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffaccel.moments import Moments
from diffaccel.plan import Plan

Array = npt.NDArray[np.float64]

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
    check_count(computed, len(response))
    return best_plans(features, response, computed)[computed]


def best_plans(features: Sequence[Moments], response: Sequence[float], most: int | None = None) -> dict[int, Plan]:
    """The `best_plan` of every number of computed steps, 1 to `most` (default: all of them), in one go."""
    steps = len(response)
    gaps = sum((gap_errors(moments, scale_of(moments, response)) for moments in features), np.zeros(()))
    # cost[older, newest]: of the cheapest way to have computed so many steps, the last two of them; older 0 is none.
    cost = np.full((steps + 1, steps), np.inf)
    cost[0, 0] = 0.0
    before: list[npt.NDArray[np.intp]] = []  # for each further step, the step before the older of the last two
    plans = {}
    for count in range(1, (most or steps) + 1):
        place = np.unravel_index(np.argmin(cost + gaps[:, :, steps]), cost.shape)
        plans[count] = Plan.at(_path(int(place[0]), int(place[1]), before), steps)
        longer = cost[:, :, None] + gaps[:, :, :steps]
        before.append(longer.argmin(0))
        cost = np.concatenate([np.full((1, steps), np.inf), longer.min(0)])
    return plans


def check_count(computed: int, steps: int) -> None:
    """Raise ValueError unless so many of a run's steps can be computed."""
    if not 1 <= computed <= steps:
        raise ValueError(f"of {steps} steps 1 to {steps} can be computed, got {computed}")


def gap_errors(moments: Moments, scale: Tensor) -> Array:
    """Squared error left between two computed steps, by the one before them, shape (steps + 1, steps, steps + 1).

    Entry [older + 1, newest, following] is the mean square of sum_s c_s (F(s) - F(newest)) over the gap, less what
    F(older) - F(newest) tells of it; older + 1 is 0 if there is none. Infinite where the three are not in this order.
    """
    gram, steps = moments.centred.double().mean(0), len(scale)
    s = torch.arange(steps)
    inside = (s > s.view(-1, 1, 1)) & (s < torch.arange(steps + 1).view(1, -1, 1))  # newest, following, step
    target = torch.where(inside, scale, 0.0)
    target = target - torch.diag_embed(torch.ones(steps, dtype=torch.float64)).unsqueeze(1) * target.sum(-1, True)
    seen = target @ gram
    alone = (seen * target).sum(-1)
    # What the regressor x = F(older) - F(newest) has in common with the gap, and its own size.
    common = (seen - seen[s, :, s].unsqueeze(-1)).permute(2, 0, 1)
    # Anchors that hardly differ tell nothing but rounding.
    power = gram.diagonal()
    spread = power.view(-1, 1) - 2 * gram + power + _ROUNDING * power.mean()
    told = torch.where(spread > 0, 1 / spread, 0.0).unsqueeze(-1) * common**2
    left = torch.cat([alone.unsqueeze(0), alone - told]).clamp_min(0)
    following, newest = torch.arange(steps + 1), s.view(-1, 1)
    left = torch.where(following == newest + 1, 0.0, left)
    older = torch.arange(-1, steps).view(-1, 1, 1)
    return torch.where((older < newest) & (following > newest), left, torch.inf).numpy()


def scale_of(moments: Moments, response: Sequence[float]) -> Tensor:
    """What one unit of error of the feature does to the latent, shape (steps,): its norm divides it by its spread."""
    spread = [float(moments.power([s]).mean().sqrt().clamp(min=1e-12)) for s in range(len(response))]
    return torch.tensor([r / one for r, one in zip(response, spread, strict=True)], dtype=torch.float64)


def _path(older: int, newest: int, before: Sequence[npt.NDArray[np.intp]]) -> list[int]:
    """The computed steps that end with these two."""
    path = [newest]
    for choice in reversed(before):
        path.append(older - 1)
        older, newest = int(choice[older - 1, newest]), older - 1
    return path[::-1]
