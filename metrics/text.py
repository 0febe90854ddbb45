"""Text of language models: do two runs decode the same tokens?"""

from __future__ import annotations

import torch
from torch import Tensor


def token_match(tokens: Tensor, reference: Tensor, padding: int | None = None) -> Tensor:
    """Share of positions at which each sample has the reference's token.

    Positions where both have padding do not count; one where only one of them has it is a difference.

    Args:
        tokens: shape (n, length), integers; without the prompt, which would always match.
        reference: the same shape, from the same prompts.
        padding: number of the padding token; None counts all positions.

    Returns:
        Shape (n,), float64 in 0..1; 1 where both are nothing but padding.

    Raises:
        TypeError: tokens that are not integers.
        ValueError: shapes that differ or are not (n, length), or no token.
    """
    same, counted = _compare(tokens, reference, padding)
    count = counted.sum(dim=1)
    share = (same & counted).sum(dim=1).double() / count
    return torch.where(count == 0, torch.ones_like(share), share)


def exact_match(tokens: Tensor, reference: Tensor, padding: int | None = None) -> Tensor:
    """Whether each sample has the reference's token at all positions, booleans of shape (n,); see `token_match`."""
    same, counted = _compare(tokens, reference, padding)
    return (same | ~counted).all(dim=1)


def _compare(tokens: Tensor, reference: Tensor, padding: int | None) -> tuple[Tensor, Tensor]:
    """Where the two agree, and which positions count."""
    if tokens.shape != reference.shape:
        raise ValueError(
            f"both must have one shape, got {tuple(tokens.shape)} and {tuple(reference.shape)}: pad the shorter one"
        )
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens must have shape (n, length) with at least one token, got {tuple(tokens.shape)}")
    for tensor in (tokens, reference):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"tokens must be integers, got {tensor.dtype}")
    same = tokens == reference
    counted = torch.ones_like(same) if padding is None else (tokens != padding) | (reference != padding)
    return same, counted
