"""How much of the change of Dash's estimate a Dot explains, by the gap it bridges and by where it arrives.

The loss of the paper is ruled by long gaps and by arrivals near clean data, where the change is a hundred times larger
than elsewhere, while sampling with several Dash steps bridges short gaps at all times. So the figure to watch is the
explained power 1 - E|k - base - Dot|^2 / E|k - base|^2 of each bin of gap and time: 0 is a Dot that says nothing, below
0 it does harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffaccel.morse.pairs import Pair

GAPS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0)
"""Edges of the bins of t_s - t, as shares of all time there is."""
TIMES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
"""Edges of the bins of t, where Dot arrives."""


@dataclass(frozen=True)
class Explained:
    """One bin.

    Attributes:
        gap: its gaps, from and to, as shares of all time.
        time: the times it arrives at, likewise.
        count: samples seen.
        change: mean square of k - base.
        left: mean square of k - base - Dot.
    """

    gap: tuple[float, float]
    time: tuple[float, float]
    count: int
    change: float
    left: float

    @property
    def explained(self) -> float:
        """The share of the change that Dot explains."""
        return 1 - self.left / self.change if self.change else 0.0


class Power:
    """Sums of squares by gap and by time of arrival.

    Args:
        span: all time there is in the network's unit: 1000 training steps, or 1.
        gaps: edges of the bins of gaps.
        times: edges of the bins of times of arrival.
    """

    def __init__(self, span: float, gaps: Sequence[float] = GAPS, times: Sequence[float] = TIMES) -> None:
        self.span, self.gaps, self.times = span, tuple(gaps), tuple(times)
        self.sums = torch.zeros(len(gaps) - 1, len(times) - 1, 3, dtype=torch.float64)  # count, change, left

    def bins(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """The bins of gap and of time [B] of a batch."""
        found = []
        for value, edges in ((pair.t_s - pair.t, self.gaps), (pair.t, self.times)):
            inner = torch.tensor(edges[1:-1], dtype=torch.float64)
            found.append(torch.bucketize(value.double().cpu() / self.span, inner))
        return found[0], found[1]

    @torch.no_grad()
    def add(self, pair: Pair, said: Tensor) -> None:
        """Count what Dot said [B, ...] for a batch of pairs."""
        change = (pair.k - pair.base).float()
        rows = torch.stack([_mean_square(change), _mean_square(change - said.float())], 1).double().cpu()
        rows = torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), rows], 1)
        self.sums.index_put_(self.bins(pair), rows, accumulate=True)

    def change(self, pair: Pair, by_time: bool) -> Tensor:
        """Mean square of the change so far, in each sample's bin of gap and time, or gap [B]; 1 if none was seen."""
        sums = self.sums if by_time else self.sums.sum(1, keepdim=True).expand_as(self.sums)
        count, change = sums[..., 0], sums[..., 1]
        means = torch.where(count > 0, change / count.where(count > 0, 1.0), 1.0)
        return means[self.bins(pair)].float()

    def table(self) -> list[Explained]:
        """All bins that were seen."""
        return [
            Explained(self.gaps[i : i + 2], self.times[j : j + 2], int(count), change / count, left / count)  # type: ignore[arg-type]
            for i, row in enumerate(self.sums.tolist())
            for j, (count, change, left) in enumerate(row)
            if count
        ]

    def by_gap(self) -> list[Explained]:
        """The same over all times of arrival."""
        edges = (self.times[0], self.times[-1])
        return [
            Explained(self.gaps[i : i + 2], edges, int(count), change / count, left / count)  # type: ignore[arg-type]
            for i, (count, change, left) in enumerate(self.sums.sum(1).tolist())
            if count
        ]

    def explained(self) -> float:
        """The share of the change explained over all that was seen, as the paper's loss weighs it."""
        _, change, left = self.sums.sum((0, 1)).tolist()
        return 1 - left / change if change else 0.0

    def fade(self, share: float) -> None:
        """Let what was seen so far count only this share from now on."""
        self.sums *= share

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint."""
        return {"sums": self.sums.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.sums = state["sums"].clone()


def _mean_square(values: Tensor) -> Tensor:
    return values.flatten(1).square().mean(1)
