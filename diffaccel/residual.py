"""Residuals: what blocks add to the features that pass through them, whatever else they take and return."""

from __future__ import annotations

from collections.abc import Mapping
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


def continuation(output: Feature, start: Tensor) -> int:
    """Which leaf of a block's output is `start` with something added: of those of its shape, the nearest one.

    Raises:
        ValueError: none has its shape.
    """
    alike = [
        (i, leaf) for i, leaf in enumerate(output.leaves) if isinstance(leaf, Tensor) and leaf.shape == start.shape
    ]
    if not alike:
        raise ValueError(f"the first block returns {shapes(output)} for an input of shape {tuple(start.shape)}")
    if len(alike) == 1:
        return alike[0][0]
    return min(alike, key=lambda found: float((found[1] - start).abs().mean()))[0]


def added(first: Feature, last: Feature) -> list[Tensor]:
    """For each tensor that the last block returns, what was added since the first; tensors are matched by position.

    Raises:
        ValueError: they do not match, or have another number of rows than the first tensor.
    """
    if len(first.leaves) != len(last.leaves) or not all(
        isinstance(begin, Tensor) and begin.shape == leaf.shape and len(leaf) == len(last.tensors[0])
        for begin, leaf in zip(first.leaves, last.leaves, strict=True)
        if isinstance(leaf, Tensor)
    ):
        raise ValueError(f"the first block returns {shapes(first)}, the last {shapes(last)}")
    return [leaf - begin for begin, leaf in zip(first.leaves, last.leaves, strict=True) if isinstance(leaf, Tensor)]


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """By row, mean |now - before| / mean |before|, float32, shape (rows,)."""
    change = (now - before).abs().flatten(1).mean(1, dtype=torch.float32)
    return change / before.abs().flatten(1).mean(1, dtype=torch.float32)


def shapes(feature: Feature) -> str:
    """The shapes of a block's output in words, such as "(1, 6, 32), (1, 16, 32)"."""
    return ", ".join(str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else repr(leaf) for leaf in feature.leaves)
