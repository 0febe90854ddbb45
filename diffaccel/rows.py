"""Residuals that every sample of a batch renews at steps of its own, and their forecast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffaccel.feature import weighted_sum
from diffaccel.forecast import Forecaster


class RowAnchors:
    """The last computed residuals of each row of a batch.

    Args:
        residuals: one tensor a leaf of a block's output.
        step: at which they were computed.
        order: most anchors held, less one.
        axis: of the rows in each tensor; None for one row that is all of it.
    """

    def __init__(self, residuals: Sequence[Tensor], step: int, order: int, axis: int | None) -> None:
        self.order, self.axis = order, axis
        self.anchors = [list(residuals)]  # newest first, by leaf
        rows = 1 if axis is None else residuals[0].shape[axis]
        self.times: list[tuple[int, ...]] = [(step,)] * rows  # by row, newest first

    @property
    def tensors(self) -> list[Tensor]:
        """All that is held."""
        return [tensor for residuals in self.anchors for tensor in residuals]

    def renew(self, rows: Sequence[bool], residuals: Sequence[Tensor], step: int) -> None:
        """`residuals` become the newest anchor of these rows; the others keep what they have."""
        older = [*self.anchors, self.anchors[-1]]  # of a row with one anchor fewer, the last one is never read
        newer = [list(residuals), *self.anchors]
        count = min(self.order + 1, len(newer))
        self.anchors = [
            [chosen(rows, a, b, self.axis) for a, b in zip(new, old, strict=True)]
            for new, old in zip(newer[:count], older[:count], strict=True)
        ]
        self.times = [
            (step, *times)[: self.order + 1] if row else times for row, times in zip(rows, self.times, strict=True)
        ]

    def forecast(self, forecaster: Forecaster, step: int) -> list[Tensor]:
        """By leaf, the residual of each row at `step`."""
        weights = [
            tuple(float(w) for w in forecaster.weights([float(t) for t in times], float(step))) for times in self.times
        ]
        if len(set(weights)) == 1:
            return [weighted_sum(held[: len(weights[0])], weights[0]) for held in zip(*self.anchors, strict=True)]
        padded = [[*row, *[0.0] * (len(self.anchors) - len(row))] for row in weights]
        return [_by_row(held, padded, self.axis or 0) for held in zip(*self.anchors, strict=True)]


def chosen(rows: Sequence[bool], yes: Tensor, no: Tensor, axis: int | None) -> Tensor:
    """Some rows of one tensor, the others of another; no copy if all are of one."""
    if all(rows):
        return yes
    if not any(rows):
        return no
    return torch.where(_along(torch.tensor(rows, device=yes.device), yes, axis or 0), yes, no)


def _by_row(anchors: Sequence[Tensor], weights: Sequence[Sequence[float]], axis: int) -> Tensor:
    """sum_j weights[b][j] * anchors[j][b], in float32 or wider."""
    dtype = torch.promote_types(anchors[0].dtype, torch.float32)
    table = torch.tensor(weights, dtype=dtype, device=anchors[0].device)  # [rows, anchors]
    total = torch.zeros_like(anchors[0], dtype=dtype)
    for j, anchor in enumerate(anchors):
        total.addcmul_(anchor.to(dtype), _along(table[:, j], anchor, axis))
    return total.to(anchors[0].dtype)


def _along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """A value a row, shaped so that it meets the rows of `like`."""
    return values.view([-1 if i == axis else 1 for i in range(like.ndim)])
