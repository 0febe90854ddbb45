"""Denoisers without a network, and runs of decoders against them, forward by forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from diffaccel.dlm.scores import Prediction
from diffaccel.dlm.state import Ask, Decoder

MASK = 7
"""The toys' mask token; the others are 0 to 6."""

Oracle = Callable[[Ask], Prediction]


@dataclass
class Run:
    """What a decoder did: its text, and the forwards it asked for, call by call."""

    text: NDArray[np.int64]
    calls: list[list[Ask]]

    @property
    def rows(self) -> int:
        """Rows computed in all forwards."""
        return sum(int(ask.rows.sum()) for asks in self.calls for ask in asks)

    @property
    def decoded(self) -> list[list[int]]:
        """Positions that each step of a step-wise run decoded."""
        texts = [asks[0].tokens for asks in self.calls] + [self.text]
        return [np.flatnonzero((one == MASK) & (other != MASK)).tolist() for one, other in pairwise(texts)]


def play(decoder: Decoder, toy: Oracle) -> Run:
    """Run a decoder to its end."""
    calls: list[list[Ask]] = []
    try:
        asks = next(decoder)
        while True:
            calls.append(asks)
            for ask in asks:  # as in the engine, all lanes are copied before any is written
                if isinstance(toy, Deep):
                    toy.copy(ask)
            asks = decoder.send([toy(ask) for ask in asks])
    except StopIteration as end:
        return Run(end.value, calls)


@dataclass
class Deep:
    """A toy with two layers of stored rows: what a row holds depends on its token and on what all rows held then.

    So a row that is reused although it should have been computed anew changes what is predicted.

    Args:
        length: L.
        seed: of its weights.
        shift: row p - 1 predicts position p.
        grid: rows see their own block of this length and earlier ones; None for all.
        period: how many different contexts there are to a prediction; with few, drafts often hold.
    """

    length: int
    seed: int = 0
    shift: bool = False
    grid: int | None = None
    period: int = 3
    lanes: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def copy(self, ask: Ask) -> None:
        """What a lane takes over before the forward."""
        if ask.source is not None:
            self.lanes[ask.lane] = self.lanes[ask.source].copy()

    def __call__(self, ask: Ask) -> Prediction:
        """One forward. Rows that are not computed are those of the lane."""
        stored = self.lanes.setdefault(ask.lane, np.full((2, self.length), -1, dtype=np.int64))
        rows = np.flatnonzero(ask.rows)
        stored[0, rows] = _mixed(ask.tokens[rows], rows, self.seed)
        assert (stored[0, : ask.visible] >= 0).all(), "a row is read that was never computed"
        stored[1, rows] = _mixed(stored[0, rows], self._seen(stored[0], rows, ask.visible), 1)
        origins = np.maximum(ask.positions - 1, 0) if self.shift else ask.positions
        assert ask.rows[origins].all(), "a position is predicted from a row that is not computed"
        context = self._seen(stored[1], origins, ask.visible) % self.period
        noise = _mixed(_mixed(ask.positions, context, self.seed), ask.positions, 2)
        confidence = _unit(_mixed(ask.positions, np.full_like(context, self.seed), 3)) * 0.9 + _unit(noise) * 0.1
        return Prediction(ask.positions, noise % MASK, confidence, _unit(_mixed(noise, noise, 4)), _unit(noise) + 0.1)

    def _seen(self, values: NDArray[np.int64], rows: NDArray[np.intp], visible: int) -> NDArray[np.int64]:
        ends = np.full(len(rows), visible) if self.grid is None else (rows // self.grid + 1) * self.grid
        return np.asarray([values[: min(end, visible)].sum() for end in ends], dtype=np.int64)


def _mixed(one: NDArray[np.int64], other: NDArray[np.int64], salt: int) -> NDArray[np.int64]:
    """A hash of two numbers below 2 ** 20."""
    found = (one.astype(np.int64) * 7919 + other.astype(np.int64) * 104729 + salt * 15485863 + 12345) % (2**31 - 1)
    found = (found * 48271) % (2**31 - 1)
    mixed: NDArray[np.int64] = (found ^ (found >> 13)) % 2**20
    return mixed


def _unit(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    return numbers.astype(np.float64) / 2**20


def left_to_right(ask: Ask) -> Prediction:
    """The toy of the oracles with the mask -1: tokens follow the nearest known position on the left."""
    tokens, known = ask.tokens, ask.tokens >= 0
    total = int(((np.flatnonzero(known) + 1) * (tokens[known] + 1)).sum())
    found, confidence = [], []
    for p in ask.positions.tolist():
        before = np.flatnonzero(known[:p])
        last, base = (int(before[-1]), int(tokens[before[-1]])) if len(before) else (-1, 0)
        found.append((base + p - last) % 7 if p - last <= 2 else (total + p) % 7)
        confidence.append(0.95 / (1 + 0.25 * (p - last - 1)) - 0.001 * p)
    gap = np.ones(len(found))
    return Prediction(ask.positions, np.array(found), np.array(confidence), np.ones(len(found)), gap)
