"""The rows each step computed, to be printed and counted."""

from __future__ import annotations

import numpy as np

from diffaccel.dlm.shift import Flags

_WIDTH = 100  # columns of a printed table; longer sequences share columns


class RowTable:
    """Rows of one sequence, step by step.

    Attributes:
        computed: rows computed at each step.
    """

    def __init__(self, length: int) -> None:
        """`length`: L, positions of the sequence.

        Raises:
            ValueError: a length below 1.
        """
        if length < 1:
            raise ValueError(f"a table of rows needs a sequence of at least 1 position, got {length}")
        self.length = length
        self.computed: list[int] = []
        self._steps: list[bytes] = []  # packed, for a sequence may be long and have many steps

    def add(self, rows: Flags) -> None:
        """A step that computes these rows, (L,).

        Raises:
            ValueError: rows of a sequence of another length.
        """
        if rows.shape != (self.length,):
            raise ValueError(f"the table holds sequences of {self.length} positions, got rows of shape {rows.shape}")
        self.computed.append(int(np.count_nonzero(rows)))
        self._steps.append(np.packbits(rows).tobytes())

    def rows(self, step: int) -> Flags:
        """(L,) rows computed at this step."""
        packed = np.frombuffer(self._steps[step], np.uint8)
        return np.unpackbits(packed, count=self.length).astype(np.bool_)

    @property
    def cache_ratio(self) -> float:
        """Mean share of rows reused per step; 0 before the first step."""
        full = self.length * len(self.computed)
        return 1 - sum(self.computed) / full if full else 0.0

    def __str__(self) -> str:
        """One line a step: `#` where a row is computed, `.` where it is reused, `+` where rows of one column differ."""
        share = -(-self.length // _WIDTH)
        starts = range(0, self.length, share)
        ruler = "".join(f"{start:<10}" for start in starts[::10])
        lines = [f"{'row':<8}  {ruler}".rstrip()]
        for step, count in enumerate(self.computed):
            rows = self.rows(step)
            parts = (rows[start : start + share] for start in starts)
            marks = "".join("#" if part.all() else "+" if part.any() else "." for part in parts)
            lines.append(f"step {step:<3}  {marks}  {count} of {self.length}")
        return "\n".join([*lines, f"cache ratio {self.cache_ratio:.3f}"])
