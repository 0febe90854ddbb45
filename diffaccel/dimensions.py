"""Forecasts by feature dimension: a rule for each group of dimensions, and the group every dimension is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """A forecaster with one row of weights per group, such as `diffaccel.forecast.Grouped`."""

    @property
    def order(self) -> int:
        """Anchors used, less one."""

    def weights(self, times: Sequence[float], t: float) -> list[list[float]]:
        """By group, one weight per anchor time in `times` (newest first) for a forecast at `t`."""


@dataclass(frozen=True, eq=False)
class ByDimension:
    """A forecaster whose weights differ between the dimensions of a feature.

    Attributes:
        rule: one row of weights per group.
        labels: by leaf of the site's output, the group of each dimension, shape (dims,), whole numbers.
    """

    rule: Rows
    labels: Mapping[int, Tensor]

    @property
    def order(self) -> int:
        """Anchors used, less one."""
        return self.rule.order

    def weights(
        self, times: Sequence[float], t: float, device: torch.device | str = "cpu"
    ) -> dict[int, Tensor | tuple[float, ...]]:
        """By leaf, one weight per anchor and dimension, shape (anchors, dims), float32.

        A leaf whose dimensions are all of one group gets one number per anchor: its forecast is a plain weighted sum.
        """
        rows = self.rule.weights(times, t)
        table = torch.tensor(rows, dtype=torch.float32)
        return {
            leaf: tuple(map(float, rows[int(groups[0])]))
            if bool((groups == groups[0]).all())
            else table[groups].T.contiguous().to(device)
            for leaf, groups in self.labels.items()
        }
