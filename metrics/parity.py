"""Parity: how far two runs that should agree are apart, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, `-10 log10(mean((image - reference)^2))` for a peak of 1.

    Computed in float64. Images of bytes are refused: their differences wrap modulo 256, which has put a floor of about
    28 dB under published numbers.

    Args:
        image: shape (n, c, h, w), floating point, in [0, 1].
        reference: the same shape.

    Returns:
        Shape (n,), infinite where the two are identical.

    Raises:
        TypeError: images that are not floating point.
        ValueError: shapes that differ or are not (n, c, h, w), or values outside [0, 1].
    """
    _check(image, reference)
    if image.ndim != 4:
        raise ValueError(f"images must have shape (n, c, h, w), got {tuple(image.shape)}")
    for name, tensor in (("image", image), ("reference", reference)):
        check_range(tensor, name)
    return -10 * torch.log10((image.double() - reference.double()).square().mean(dim=(1, 2, 3)))


def relative_l2(sample: Tensor, reference: Tensor) -> Tensor:
    """Distance of each sample from its reference in units of the reference, `|sample - reference| / |reference|`.

    Computed in float64 with Euclidean norms over all axes but the first.

    Args:
        sample: shape (n, ...), floating point.
        reference: the same shape.

    Returns:
        Shape (n,), 0 where the two are identical and infinite where only the reference is zero.

    Raises:
        TypeError: tensors that are not floating point.
        ValueError: shapes that differ, or no sample.
    """
    _check(sample, reference)
    distance = (sample.double() - reference.double()).flatten(1).norm(dim=1)
    return torch.where(distance == 0, distance, distance / reference.double().flatten(1).norm(dim=1))


def identical(sample: Tensor, reference: Tensor) -> Tensor:
    """Whether all numbers of each sample equal those of its reference; a NaN equals nothing.

    Args:
        sample: shape (n, ...).
        reference: the same shape and dtype.

    Returns:
        Booleans of shape (n,).

    Raises:
        TypeError: dtypes that differ.
        ValueError: shapes that differ, or no sample.
    """
    _check_shapes(sample, reference)
    if sample.dtype != reference.dtype:
        raise TypeError(f"samples of {sample.dtype} and {reference.dtype} cannot be identical: compare one dtype")
    return (sample == reference).flatten(1).all(dim=1)


def check_range(pictures: Tensor, name: str) -> None:
    """Raise ValueError unless all numbers of `pictures` lie in [0, 1]; NaN does not."""
    low, high = pictures.min().item(), pictures.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}: rescale or clamp")


def _check(sample: Tensor, reference: Tensor) -> None:
    _check_shapes(sample, reference)
    for tensor in (sample, reference):
        if not tensor.is_floating_point():
            raise TypeError(f"samples must be floating point, got {tensor.dtype}: convert them first (bytes: x / 255)")


def _check_shapes(sample: Tensor, reference: Tensor) -> None:
    if sample.shape != reference.shape:
        raise ValueError(f"both must have one shape, got {tuple(sample.shape)} and {tuple(reference.shape)}")
    if sample.ndim < 2 or sample.numel() == 0:
        raise ValueError(f"samples must have shape (n, ...) with at least one sample, got {tuple(sample.shape)}")
