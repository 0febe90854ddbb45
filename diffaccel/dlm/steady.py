"""Row policies whose stored rows only change at full steps.

Between two full steps, what is computed at a step depends on nothing but its tokens and on rows that stay as they are.
So several steps can be tried at once against the same stored rows, which is what self-speculative decoding needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from diffaccel.dlm.decode import check_whole
from diffaccel.dlm.policies import Dual, Full, Policy, Prefill, Prefix, View
from diffaccel.dlm.shift import Flags


@dataclass(frozen=True)
class Interval:
    """Every R-th step of a block computes all rows; between them, tokens known at the last such step are reused.

    Differs from dKV-Cache-Decode: a token decoded between two full steps is computed at each step until the next one,
    so its keys and values are never older than the text around it, and all rows that are reused are of one age.

    Attributes:
        refresh: R; 1 computes all rows at every step.

    Raises:
        ValueError: a refresh below 1.
    """

    refresh: int = 8
    needs_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("refresh", self.refresh, 1)

    def reused(self, view: View) -> Flags:
        if view.before is None or view.index % self.refresh == 0 or view.refreshed is None:
            return np.zeros_like(view.known)
        return view.refreshed.copy()


@dataclass(frozen=True)
class Finished:
    """Block diffusion: finished blocks are reused, the one just finished is computed once more with its last tokens.

    Exact where attention is causal between blocks: a finished block's keys and values depend on nothing that follows.

    Attributes:
        block_length: of the grid; the last block may be shorter.

    Raises:
        ValueError: a block length below 1.
    """

    block_length: int
    needs_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("block_length", self.block_length, 1)

    def reused(self, view: View) -> Flags:
        end = view.block.start - (self.block_length if view.before is None else 0)
        return np.arange(len(view.known)) < (max(end, 0) if view.overall else 0)


STEADY: tuple[type[Policy], ...] = (Full, Prefill, Prefix, Dual, Interval)
