"""What a sequence is while it is decoded, and what it asks of whoever runs the network: pure bookkeeping.

A decoder is a generator: it yields the forwards it wants and is sent what they predict. Whoever runs it may put the
forwards of many sequences into one batch; none knows of the others.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diffaccel.dlm.shift import Flags

if TYPE_CHECKING:
    from diffaccel.dlm.scores import Prediction

Places: TypeAlias = NDArray[np.intp]


@dataclass(frozen=True)
class Ask:
    """A forward that a decoder wants.

    Attributes:
        tokens: (L,) the sequence.
        rows: (L,) the rows to compute.
        positions: (m,) what to predict.
        visible: the positions from here on do not exist yet.
        step: step of the run whose decision it serves.
        lane: which of the sequence's own lanes it runs in.
        source: the lane whose slots that lane takes over first; its own if None.
    """

    tokens: NDArray[np.int64]
    rows: Flags
    positions: Places
    visible: int
    step: int
    lane: int = 0
    source: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it computes all rows there are."""
        return bool(self.rows[: self.visible].all())


Decoder: TypeAlias = "Generator[list[Ask], list[Prediction], NDArray[np.int64]]"
"""Yields forwards, is sent their predictions in the same order, returns the decoded sequence (L,)."""


@dataclass(frozen=True)
class State:
    """A sequence at the start of a step. Nothing in it is ever changed; a step makes a new one.

    Attributes:
        tokens: (L,) prompt, then decoded tokens and masks.
        known: (L,) what is not masked.
        stored: (L,) rows that have been computed at some time.
        block: number of the block being decoded.
        index: step within the block.
        step: step of the run.
        before: (L,) `known` at the start of the step before; None at the first of a block.
        counts: tokens to decode at each step of the block.
        refreshed: (L,) `known` when all rows were computed last; None before the first step.
    """

    tokens: NDArray[np.int64]
    known: Flags
    stored: Flags
    block: int = 0
    index: int = 0
    step: int = 0
    before: Flags | None = None
    counts: tuple[int, ...] = ()
    refreshed: Flags | None = None
