"""What a guidance branch knows of its last computed steps, for every sample by itself: the memory of first_block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_unflatten

from diffaccel.feature import Feature, stand_in
from diffaccel.forecast import Forecaster
from diffaccel.residual import arrangement, relative_change, shapes, starts
from diffaccel.rows import RowAnchors, chosen


@dataclass
class Head:
    """What the first block did in one call.

    Attributes:
        output: what it returned.
        residual: what it added to its input.
        axis: which axis of the residual counts the samples, None if none does.
        rows: whether the other blocks have to run, one a sample; a single one if no axis counts them.
    """

    output: Feature
    residual: Tensor
    axis: int | None
    rows: list[bool]

    @property
    def count(self) -> int:
        """Number of rows."""
        return 1 if self.axis is None else self.residual.shape[self.axis]


class History:
    """The first block's residual at the last computed step, and what the other blocks added at the last few.

    Args:
        head: the first block's work at a step at which all blocks ran.
        result: what the last block returned.
        step: the step.
        order: of the forecast.

    Raises:
        ValueError: the last block's output does not continue the first one's.
    """

    def __init__(self, head: Head, result: Any, step: int, order: int) -> None:
        self.residual = head.residual
        self.skipped = [0] * head.count  # steps in a row, by row
        self._shapes = shapes(head.output)
        self._how = arrangement(head.output, Feature(result))
        self._output = Feature(stand_in(result))  # the last block's, without its values
        self._tail = RowAnchors(self._added(head, Feature(result)), step, order, head.axis)

    @property
    def tensors(self) -> list[Tensor]:
        """All that is held."""
        return [self.residual, *self._tail.tensors]

    def fits(self, output: Feature) -> bool:
        """Whether this is the history of calls whose first block returns tensors of these shapes."""
        return self._shapes == shapes(output)

    def changes(self, head: Head) -> list[float]:
        """By row, how much the first block's residual changed, relative to what it was."""
        found: list[float] = relative_change(head.residual, self.residual, head.axis).tolist()
        return found

    def skip(self, head: Head, rule: Forecaster, step: int) -> Any:
        """What the last block would return if no block after the first ran."""
        tails = iter(self._tail.forecast(rule, step))
        leaves = [
            begin + next(tails) if isinstance(leaf, Tensor) else leaf
            for begin, leaf in zip(starts(head.output, self._how), self._output.leaves, strict=True)
        ]
        return tree_unflatten(leaves, self._output.spec)

    def compute(self, head: Head, result: Any, rule: Forecaster, step: int) -> Any:
        """What the last block's output becomes where only some rows asked for it; these remember the step."""
        fresh = Feature(result)
        if not all(head.rows):
            skipped = Feature(self.skip(head, rule, step))
            leaves = [
                chosen(head.rows, leaf, other, head.axis) if isinstance(leaf, Tensor) else leaf
                for leaf, other in zip(fresh.leaves, skipped.leaves, strict=True)
            ]
            result = tree_unflatten(leaves, fresh.spec)
        self._tail.renew(head.rows, self._added(head, fresh), step)
        self.residual = chosen(head.rows, head.residual, self.residual, head.axis)
        self.skipped = [0 if row else count + 1 for row, count in zip(head.rows, self.skipped, strict=True)]
        return result

    def _added(self, head: Head, output: Feature) -> list[Tensor]:
        begins = starts(head.output, self._how)
        return [leaf - begin for begin, leaf in zip(begins, output.leaves, strict=True) if isinstance(leaf, Tensor)]
