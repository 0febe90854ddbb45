"""Policies: how far actions are off, and how often an episode succeeds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from diffaccel.metrics.bootstrap import Estimate, share_interval


def action_error(actions: Tensor, reference: Tensor) -> Tensor:
    """Root mean square difference of each sample's actions from the reference's, in the unit of the actions.

    The mean runs over all axes but the first, horizon and action dimensions, in float64. Dimensions of different units
    must be normalized first, as the policy sees them, or split.

    Args:
        actions: shape (n, horizon, dimension), or any (n, ...); floating point and finite.
        reference: the same shape, from the same observations and the same noise.

    Returns:
        Shape (n,), 0 where the two are identical.

    Raises:
        TypeError: actions that are not floating point.
        ValueError: shapes that differ, no sample, or values that are not finite.
    """
    if actions.shape != reference.shape:
        raise ValueError(f"both must have one shape, got {tuple(actions.shape)} and {tuple(reference.shape)}")
    if actions.ndim < 2 or actions.numel() == 0:
        raise ValueError(f"actions must have shape (n, ...) with at least one sample, got {tuple(actions.shape)}")
    for name, tensor in (("actions", actions), ("reference", reference)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite: the policy has diverged")
    return (actions.double() - reference.double()).flatten(1).square().mean(dim=1).sqrt()


def success_rate(successes: Tensor | Sequence[bool], level: float = 0.95) -> Estimate:
    """Share of episodes that succeeded, in 0..1, with Wilson's interval.

    Args:
        successes: one boolean an episode.
        level: share of intervals that hold the true rate.

    Raises:
        ValueError: no episode, or a value other than True and False.
    """
    return share_interval(successes, level)
