"""Modulation of AdaLN-Zero layers: shift, scale and gate of each branch, kept for the branches that are skipped.

What such a layer adds is the gate times what a branch returns. A skipped branch adds what it added last, so its gate is
kept along with its output; the modulation runs only where some branch of its layer computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

CHUNKS = 3
"""Shift, scale and gate: chunks of a modulation for each branch, in the order of the branches."""


class Modulation:
    """What the modulation of one layer returned last, by guidance branch.

    Args:
        module: the modulation.
        branches: of its layer.
    """

    def __init__(self, module: nn.Module, branches: int) -> None:
        self.module, self.branches = module, branches
        self._held: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Drop what was kept."""
        self._held.clear()

    def of(self, branch: str, computing: Sequence[bool], real: Callable[[], Tensor]) -> Tensor:
        """The modulation of a call: new chunks for the branches that compute, kept ones for the others.

        Args:
            branch: of guidance.
            computing: whether each branch of the layer computes.
            real: runs the module.

        Raises:
            RuntimeError: the module's output is not three chunks for each branch.
        """
        held = self._held.get(branch)
        if held is not None and not any(computing):
            return held
        fresh = real()
        if fresh.shape[-1] % (CHUNKS * self.branches):
            raise RuntimeError(
                f"the modulation of an AdaLN-Zero layer must return {CHUNKS * self.branches} chunks of one size along "
                f"its last axis, got shape {tuple(fresh.shape)}: method='taylorseer' does not need to know them"
            )
        if held is not None and held.shape == fresh.shape and not all(computing):
            pairs = zip(fresh.chunk(self.branches, -1), held.chunk(self.branches, -1), strict=True)
            fresh = torch.cat([new if now else old for now, (new, old) in zip(computing, pairs, strict=True)], -1)
        self._held[branch] = fresh
        return fresh

    def gate(self, branch: str, number: int, output: Tensor) -> Tensor:
        """The gate kept for branch `number` of the layer, in a shape that multiplies its output."""
        return spread(self._held[branch].chunk(CHUNKS * self.branches, -1)[CHUNKS * number + CHUNKS - 1], output)


def spread(gate: Tensor, output: Tensor) -> Tensor:
    """A gate in a shape that multiplies an output: one gate a sample multiplies all of its tokens."""
    while gate.ndim < output.ndim:
        gate = gate.unsqueeze(1)
    return gate
