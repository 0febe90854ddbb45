"""Residuals: what blocks add to the features that pass through them, whatever else they take and return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from diffaccel.feature import Feature


def stream(arguments: Mapping[str, Any]) -> Tensor:
    """The tensor that a block adds to, among the arguments of its call: its `hidden_states`, or else the first."""
    named = arguments.get("hidden_states")
    if isinstance(named, Tensor):
        return named
    return next(value for value in arguments.values() if isinstance(value, Tensor))


def samples(arguments: Mapping[Any, Any]) -> int:
    """How many samples a network is called with, by its first argument, which is a tensor or a list of one a sample."""
    first = arguments.get("hidden_states")
    if not isinstance(first, Tensor | list):
        first = next((value for value in arguments.values() if isinstance(value, Tensor | list)), [])
    return len(first)


def samples_axis(shape: Sequence[int], count: int) -> int | None:
    """Which axis of a feature counts the samples: the first, the second where tokens come first, or none."""
    return next((axis for axis in (0, 1) if len(shape) > axis + 1 and shape[axis] == count), None)


def continuation(output: Feature, start: Tensor) -> int:
    """Which leaf of a block's output is `start` with something added: of those of its shape, the nearest one.

    Raises:
        ValueError: none has its shape.
    """
    alike = [i for i, leaf in enumerate(output.leaves) if isinstance(leaf, Tensor) and leaf.shape == start.shape]
    if not alike:
        raise ValueError(f"the first block returns {shapes(output)} for an input of shape {tuple(start.shape)}")
    return alike[0] if len(alike) == 1 else min(alike, key=lambda i: _distance(output.leaves[i], start))


Arrangement = tuple[int, ...]


def arrangement(first: Feature, last: Feature) -> Arrangement:
    """How the last block's output continues the first one's: () where tensors match by position.

    Otherwise the first one's tensors, such as text and picture, were joined along their tokens on the way; then their
    order, the one that lies nearest.

    Raises:
        ValueError: neither fits.
    """
    pairs = list(zip(first.leaves, last.leaves, strict=False))
    if len(first.leaves) == len(last.leaves) and all(
        isinstance(begin, Tensor) and begin.shape == leaf.shape for begin, leaf in pairs if isinstance(leaf, Tensor)
    ):
        return ()
    parts = first.tensors
    if len(last.leaves) == len(last.tensors) == 1 and 1 < len(parts) == len(first.leaves) <= 3:
        whole = last.tensors[0]
        if _joint_shape(parts) == whole.shape:
            orders = permutations(range(len(parts)))
            return min(orders, key=lambda order: _distance(torch.cat([parts[i] for i in order], 1), whole))
    raise ValueError(f"the first block returns {shapes(first)}, the last {shapes(last)}")


def starts(first: Feature, how: Arrangement) -> list[Any]:
    """What the last block's leaves began as in the first block's output."""
    return [torch.cat([first.leaves[i] for i in how], 1)] if how else first.leaves


def relative_change(now: Tensor, before: Tensor, axis: int | None) -> Tensor:
    """By sample, mean |now - before| / mean |before|, float32, shape (samples,); without an axis of all together."""

    def means(tensor: Tensor) -> Tensor:
        rows = tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)
        return rows.abs().flatten(1).mean(1, dtype=torch.float32)

    return means(now - before) / means(before)


def shapes(feature: Feature) -> str:
    """The shapes of a block's output in words, such as "(1, 6, 32), (1, 16, 32)"."""
    return ", ".join(str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else repr(leaf) for leaf in feature.leaves)


def _joint_shape(parts: Iterable[Tensor]) -> torch.Size | None:
    """The shape of tensors joined along their second axis; None if they differ elsewhere."""
    found = [part.shape for part in parts]
    if any(len(shape) < 3 or shape[:1] + shape[2:] != found[0][:1] + found[0][2:] for shape in found):
        return None
    return torch.Size([found[0][0], sum(shape[1] for shape in found), *found[0][2:]])


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean())
