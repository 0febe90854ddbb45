"""What Dot learns from: where it is asked, what it is told, and what Dash says there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

SHARED = ("img_ids", "txt_ids", "image_rotary_emb")
"""Conditioning by position, which all samples share: it may have as many rows as there are samples by chance."""


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
    return _made(torch.cat, pairs)


def take(pair: Pair, rows: Tensor | slice) -> Pair:
    """Some rows of a batch of pairs."""
    return _made(lambda parts: parts[0][rows], [pair])


def rows_of(conditioning: Mapping[str, Any], size: int, make: Callable[[list[Tensor]], Tensor], *more: Any) -> Any:
    """Conditioning with `make` applied to what has a row for each of `size` samples; all other is as it was."""

    def of(value: Any, *parts: Any) -> Any:
        by_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
        return make([value, *parts]) if by_row else value

    own = {name: value for name, value in conditioning.items() if name not in SHARED}
    others = [{name: one[name] for name in own} for one in more]
    return {**conditioning, **tree_map(of, own, *others)}


def _made(make: Callable[[list[Tensor]], Tensor], pairs: Sequence[Pair]) -> Pair:
    first = pairs[0]
    names = [field.name for field in fields(Pair) if field.name != "conditioning"]
    tensors = {name: make([getattr(pair, name) for pair in pairs]) for name in names}
    others = [pair.conditioning for pair in pairs[1:]]
    return Pair(**tensors, conditioning=rows_of(first.conditioning, len(first.x), make, *others))
