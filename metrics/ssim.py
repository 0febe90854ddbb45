"""Structural similarity of two pictures: do they agree in brightness, contrast and structure, window by window?"""

from __future__ import annotations

import torch
from torch import Tensor

from diffaccel.metrics.parity import check_range

WINDOW = 11
BLOCK = 2**24
"""Numbers of a picture tensor worked on at once; the windows need some ten times as much memory."""


def ssim(pictures: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity index of each picture (Wang et al. 2004), computed by torchmetrics in float64.

    Gaussian window of 11 pixels with a standard deviation of 1.5, K1 = 0.01, K2 = 0.03, a peak of 1, per channel. As in
    torchmetrics the borders are mirrored, so that windows stand on all pixels; Wang's own code leaves the border out.

    Args:
        pictures: shape (n, c, h, w), floating point, in [0, 1].
        reference: the same shape.

    Returns:
        Shape (n,), float64: 1 where the two are identical, at worst -1.

    Raises:
        TypeError: pictures that are not floating point.
        ValueError: shapes that differ or are not (n, c, h, w), values outside [0, 1], or sides below 11 pixels.
        ImportError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as similarity
    except ImportError as error:
        raise ImportError("SSIM needs torchmetrics: pip install 'diffaccel[eval]'") from error
    check_pair(pictures, reference)
    if min(pictures.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs sides of at least {WINDOW} pixels, got {tuple(pictures.shape[2:])}")
    size = max(1, BLOCK // pictures[0].numel())
    parts = zip(pictures.split(size), reference.split(size), strict=True)
    scores = (similarity(a.double(), b.double(), data_range=1.0, reduction="none") for a, b in parts)
    return torch.cat([score for score in scores if isinstance(score, Tensor)])  # never the tuple it may also give


def check_pair(pictures: Tensor, reference: Tensor) -> None:
    """Raise TypeError or ValueError unless both are floating point, of one shape (n, c, h, w), and in [0, 1]."""
    if pictures.shape != reference.shape:
        raise ValueError(f"both must have one shape, got {tuple(pictures.shape)} and {tuple(reference.shape)}")
    for name, tensor in (("pictures", pictures), ("reference", reference)):
        check_pictures(tensor, name)


def check_pictures(pictures: Tensor, name: str = "pictures") -> None:
    """Raise TypeError or ValueError unless `pictures` is floating point, of shape (n, c, h, w), and in [0, 1]."""
    if not pictures.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {pictures.dtype}: convert them first (bytes: x / 255)")
    if pictures.ndim != 4 or pictures.numel() == 0:
        raise ValueError(f"{name} must have shape (n, c, h, w) with at least one, got {tuple(pictures.shape)}")
    check_range(pictures, name)
