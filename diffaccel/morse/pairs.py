"""What Dot learns from: where it is asked, what it is told, and what Dash says there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Pair:
    """A batch of pairs of a Dash step s and a later time of the same trajectory. No tensor has a gradient.

    Attributes:
        x: sample where Dot is asked, as the network would be given it [B, ...].
        t: time there, as the network would be given it [B].
        x_s: sample at the Dash step.
        k_s: what is kept of the Dash step's estimate, see `diffaccel.morse.coordinates`.
        t_s: time of the Dash step [B].
        base: what a Dot of zero would keep, shaped like `k_s`; it is `k_s` itself in the paper.
        k: what Dash says at (x, t).
        conditioning: Dash's other arguments by name.
    """

    x: Tensor
    t: Tensor
    x_s: Tensor
    k_s: Tensor
    t_s: Tensor
    base: Tensor
    k: Tensor
    conditioning: dict[str, Any]


def join(pairs: Sequence[Pair]) -> Pair:
    """Batches of pairs as one. Conditioning that has a row a sample is joined, all other is that of the first.

    Raises:
        ValueError: there is none.
    """
    if not pairs:
        raise ValueError("there is no pair to join")
    return _map(lambda parts: torch.cat(parts), pairs)


def take(pair: Pair, rows: Tensor) -> Pair:
    """Some rows of a batch of pairs."""
    return _map(lambda parts: parts[0][rows], [pair])


def _map(make: Callable[[list[Tensor]], Tensor], pairs: Sequence[Pair]) -> Pair:
    first = pairs[0]

    def of(value: Any, *parts: Any) -> Any:
        by_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(first.x)
        return make([value, *parts]) if by_row else value

    names = [field.name for field in fields(Pair) if field.name != "conditioning"]
    tensors = {name: make([getattr(pair, name) for pair in pairs]) for name in names}
    return Pair(**tensors, conditioning=tree_map(of, first.conditioning, *(pair.conditioning for pair in pairs[1:])))
