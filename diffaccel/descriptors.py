"""Descriptors: how a feature dimension moves along a run, in seven numbers. HyCa groups dimensions by them.

Differences are taken per token and averaged over tokens in absolute value, so that opposite signs do not cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

# HyCa (arXiv 2510.04188) lists differences, ratios, energy and spectral flatness, and leaves the list open.
KINDS = (
    "first_difference",
    "second_difference",
    "third_difference",
    "curvature_ratio",
    "jerk_ratio",
    "energy",
    "spectral_flatness",
)
LEAST_STEPS = 4  # what a third difference needs

_EPSILON = 1e-8


def descriptors(series: Tensor) -> dict[str, Tensor]:
    """The descriptors of every dimension, by the names in `KINDS`.

    Differences and energy are in units of the feature, ratios and flatness are pure numbers. Flatness lies in 0 to 1:
    near 0 where one frequency carries the motion, near 1 for noise, and 1 where nothing moves.

    Args:
        series: a feature along a run, shape (steps, tokens, dims); tokens of several samples may be pooled.

    Returns:
        Tensors of shape (dims,), in float32 or wider.

    Raises:
        ValueError: another number of axes, no token, or fewer than 4 steps.
    """
    if series.ndim != 3 or series.shape[0] < LEAST_STEPS or series.shape[1] < 1:
        raise ValueError(
            f"descriptors need a series of shape (steps, tokens, dims) with at least {LEAST_STEPS} steps and a token, "
            f"got {tuple(series.shape)}"
        )
    series = series.to(torch.promote_types(series.dtype, torch.float32))
    first, second, third = (series.diff(n=n, dim=0).abs().mean((0, 1)) for n in (1, 2, 3))
    return {
        "first_difference": first,
        "second_difference": second,
        "third_difference": third,
        "curvature_ratio": second / (first + _EPSILON),
        "jerk_ratio": third / (second + _EPSILON),
        "energy": series.abs().mean((0, 1)),
        "spectral_flatness": spectral_flatness(series),
    }


def spectral_flatness(series: Tensor) -> Tensor:
    """Geometric over arithmetic mean of the power spectrum, averaged over tokens before, frequency 0 left out.

    Args:
        series: shape (steps, tokens, dims), at least 2 steps.

    Returns:
        Shape (dims,), 0 to 1.
    """
    spectrum = torch.fft.rfft(series, dim=0).abs().square().mean(1)  # (frequencies, dims)
    # Power below the rounding of the feature itself is no motion.
    floor = spectrum.sum(0) * torch.finfo(series.dtype).eps ** 2 + torch.finfo(series.dtype).tiny
    power = spectrum[1:] + floor
    flatness: Tensor = power.log().mean(0).exp() / power.mean(0)
    return flatness
