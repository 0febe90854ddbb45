"""What branches add to the stream, caught call by call and changed at will, whatever the kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from diffaccel.branches import Layer, first_tensor, numbered
from diffaccel.modulation import CHUNKS, spread
from diffaccel.patch import Patch

Edit = Callable[[int, Tensor], Tensor]
"""Gets the number of a branch and what it would add, returns what is added instead."""


@contextmanager
def edited(layers: Sequence[Layer], edit: Edit) -> Iterator[None]:
    """Let `edit` decide what each branch of these layers adds in the `with` block; afterwards they are as they were.

    Branches are numbered over all layers, in order of execution. What a gated branch adds is its output times the gate:
    `edit` gets the product, and the layer itself then multiplies by one.

    Args:
        layers: of one network, see `diffaccel.branches.layers`.
        edit: called at each call of each branch.
    """
    with ExitStack() as undo:
        for layer, own in numbered(layers):
            gates: list[Tensor] = []
            if layer.modulation is not None:
                ungated = _ungated(gates, len(layer.branches))
                undo.callback(Patch(layer.modulation, "forward", ungated).remove)
            for i, (number, branch) in enumerate(zip(own, layer.branches, strict=True)):
                gate = None if layer.modulation is None else (gates, i)
                undo.callback(Patch(branch.owner, branch.attr, _changed(edit, number, gate)).remove)
        yield


def _ungated(gates: list[Tensor], branches: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A modulation whose gates are all one; the true ones are kept in `gates` until the next call."""

    def wrap(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            chunks = list(real(*args, **kwargs).chunk(CHUNKS * branches, dim=-1))
            gates[:] = chunks[CHUNKS - 1 :: CHUNKS]
            chunks[CHUNKS - 1 :: CHUNKS] = [torch.ones_like(gate) for gate in gates]
            return torch.cat(chunks, dim=-1)

        return call

    return wrap


def _changed(
    edit: Edit, number: int, gate: tuple[list[Tensor], int] | None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A branch whose output, or the first item of it, is edited; `gate` tells where its gate is found."""

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = real(*args, **kwargs)
            added = first_tensor(output)
            if gate is not None:
                gates, i = gate
                added = added * spread(gates[i], added)
            added = edit(number, added)
            return (added, *output[1:]) if isinstance(output, tuple) else added

        return call

    return wrap
