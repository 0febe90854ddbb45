"""Weights fitted to the second moments of a pipeline's features, and corrected for the error they leave behind.

A forecast of step t from anchors a_0 > a_1 > ... is F(a_0) + sum_j w_j (F(a_j) - F(a_0)): its weights sum to 1 whatever
the w are. The best w are a linear regression, and all it needs are the moments of the features (`diffaccel.moments`).

Single steps are not all: their errors point the same way and add up in the latent. What has added up since the
beginning, sum_s c_s e_s with c the response of the sampler, is a sum of features too, so the part of it that the
anchors of the next skipped steps tell is known beforehand and can be taken out in them (`feedback`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffaccel.moments import Moments
from diffaccel.plan import Plan

RIDGE = 1e-3
"""Ridge of the feedback, relative to the spread of each regressor."""


@dataclass(frozen=True)
class Fit:
    """What is fitted.

    Attributes:
        anchors: most anchors a forecast uses.
        ridge: pulls the weights towards plain reuse, relative to the mean spread of the regressors.
        feedback: share of the error added up so far that is taken out in the next skipped steps; 0 for none, 1 for all
            that the anchors tell.
    """

    anchors: int = 3
    ridge: float = 1e-4
    feedback: float = 0.0


@dataclass(frozen=True, eq=False)
class Table:
    """Fitted weights of all skipped steps of a run, by group: a rule for `diffaccel.dimensions.ByDimension`.

    Attributes:
        order: anchors used, less one.
        groups: number of groups.
        rows: by skipped step and its anchors (newest first), shape (groups, anchors).
    """

    order: int
    groups: int
    rows: Mapping[tuple[int, tuple[int, ...]], Tensor] = field(repr=False)

    def weights(self, times: Sequence[float], t: float) -> list[list[float]]:
        """The fitted weights; where anchors are missing that were there when it was fitted, plain reuse."""
        used = tuple(int(time) for time in times[: self.order + 1])
        if (int(t), used) in self.rows:
            rows: list[list[float]] = self.rows[int(t), used].tolist()
        else:
            rows = [[1.0] + [0.0] * (len(used) - 1) for _ in range(self.groups)]
        return [row + [0.0] * (len(times) - len(row)) for row in rows]


def fit(moments: Moments, labels: Tensor, plan: Plan, response: Sequence[float], how: Fit) -> Table:
    """Weights of every step that the plan skips.

    Args:
        moments: of the feature, for all steps of the run.
        labels: group of each dimension, shape (dims,).
        plan: one row.
        response: of the sampler to each step, see `diffaccel.response`.
        how: see `Fit`.
    """
    grams, times = _by_group(moments, labels), moments.steps
    groups, steps = len(grams), len(times)
    # All in rows of the moments. A network that works in one part of the run computes its first step in any case.
    computed = [row for row, s in enumerate(times) if row == 0 or plan.computes(0, s)]
    # The final norm divides a feature by its spread before it is projected.
    scale = [response[s] / float(moments.power([s]).mean().sqrt().clamp(min=1e-12)) for s in times]
    debt = torch.zeros(groups, steps, dtype=torch.float64)  # sum of c_s e_s so far, as weights on all steps
    rows: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    for skipped in _runs(computed, steps):
        anchors = tuple(s for s in computed if s < skipped[0])[::-1][: how.anchors]
        x = _differences(anchors, steps)
        change = how.feedback * _regress(grams, x, debt, RIDGE * _spread(grams, x))
        total = sum(scale[s] for s in skipped)
        for s in skipped:
            target = torch.zeros(groups, steps, dtype=torch.float64)
            target[:, s], target[:, anchors[0]] = 1, -1
            ridge = how.ridge * _spread(grams, x).mean(1, keepdim=True).expand(-1, len(x))
            w = _regress(grams, x, target, ridge)
            if total != 0:
                w = w + change / total
            rows[times[s], tuple(times[a] for a in anchors)] = torch.cat([1 - w.sum(1, keepdim=True), w], dim=1)
            # e_s = F(s) - F(a_0) - sum_j w_j (F(a_j) - F(a_0))
            debt = debt + scale[s] * (target - w @ x)
    return Table(how.anchors - 1, groups, rows)


def joined(tables: Sequence[Table]) -> Table:
    """The tables of all tensors of a site as one, groups in their order."""
    rows = {key: torch.cat([table.rows[key] for table in tables]) for key in tables[0].rows}
    return Table(tables[0].order, sum(table.groups for table in tables), rows)


def _by_group(moments: Moments, labels: Tensor) -> Tensor:
    """Second moments (groups, steps, steps), summed over the dimensions of each group; means over steps do not matter,
    since all combinations that are regressed sum to 0."""
    groups = int(labels.max()) + 1
    grams = torch.zeros(groups, *moments.centred.shape[1:], dtype=torch.float64)
    return grams.index_add_(0, labels, moments.centred.double())


def _runs(computed: Sequence[int], steps: int) -> list[list[int]]:
    """The rows that are not computed, those that follow each other together."""
    result: list[list[int]] = []
    for s in sorted(set(range(steps)) - set(computed)):
        if result and result[-1][-1] == s - 1:
            result[-1].append(s)
        else:
            result.append([s])
    return result


def _differences(anchors: Sequence[int], steps: int) -> Tensor:
    """The regressors F(a_j) - F(a_0) as weights on all steps, shape (anchors - 1, steps)."""
    x = torch.zeros(len(anchors) - 1, steps, dtype=torch.float64)
    for j, anchor in enumerate(anchors[1:]):
        x[j, anchor], x[j, anchors[0]] = 1, -1
    return x


def _spread(grams: Tensor, x: Tensor) -> Tensor:
    """Mean square of each regressor, shape (groups, regressors)."""
    return torch.einsum("js,gst,jt->gj", x, grams, x)


def _regress(grams: Tensor, x: Tensor, target: Tensor, ridge: Tensor) -> Tensor:
    """Ridge regression of a combination of features (groups, steps) on regressors, shape (groups, regressors)."""
    inner = torch.einsum("is,gst,jt->gij", x, grams, x) + torch.diag_embed(ridge + 1e-30)
    solution: Tensor = torch.linalg.solve(inner, torch.einsum("is,gst,gt->gi", x, grams, target))
    return solution
