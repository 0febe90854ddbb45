"""Resizing of pictures to the side that a feature extractor reads, in the ways that published numbers were made.

The three ways give different distances from the same network, so numbers compare within one of them only
(Parmar, Zhang and Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MODES = ("clean", "torchmetrics", "tf1", "none")
"""``tf1`` is TensorFlow's and torch-fidelity's; ``none`` takes pictures of the right side only."""


def resize(pictures: Tensor, side: int, mode: str = "clean") -> Tensor:
    """Pictures of any size to squares; pictures that are no squares are squeezed, as all reference implementations do.

    ``clean`` is Pillow's bicubic filter on each channel in float32, clipped to 0..255 and not rounded. ``torchmetrics``
    is bilinear with antialiasing. ``tf1`` is bilinear as TensorFlow 1 had it: no antialiasing, and pixel ``i`` of the
    result lies at ``i * length / side``, half a pixel off. ``none`` converts and leaves the size alone.

    Args:
        pictures: shape (n, 3, h, w), bytes.
        side: height and width of the result in pixels.
        mode: one of ``MODES``.

    Returns:
        Shape (n, 3, side, side), float32 in 0..255, on the device of the pictures.

    Raises:
        TypeError: pictures that are not bytes.
        ValueError: another shape, side or mode, or pictures of another size in mode ``none``.
    """
    check_pictures(pictures)
    if mode not in MODES:
        raise ValueError(f"resize must be one of {', '.join(MODES)}, got {mode!r}")
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, got {side}")
    if mode == "clean":
        return _clean(pictures, side)
    if mode == "torchmetrics":
        size = (side, side)
        return F.interpolate(pictures.float(), size, mode="bilinear", align_corners=False, antialias=True)
    if mode == "tf1":
        return _interpolate(_interpolate(pictures.float(), side, dim=3), side, dim=2)
    height, width = pictures.shape[2:]
    if (height, width) != (side, side):
        raise ValueError(
            f"this extractor reads pictures of {side} x {side}, got {width} x {height}: generate at that size or "
            f"choose a resize among {', '.join(MODES[:-1])}"
        )
    return pictures.float()


def check_pictures(pictures: Tensor) -> None:
    """Refuse what is no batch of colour pictures in bytes.

    Raises:
        TypeError: they are not bytes.
        ValueError: their shape is not (n, 3, h, w), or a side is 0.
    """
    if pictures.dtype != torch.uint8:
        raise TypeError(f"pictures must be bytes (torch.uint8), got {pictures.dtype}: convert them (as_bytes)")
    if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape[2:]:
        raise ValueError(f"pictures must have shape (n, 3, h, w), got {tuple(pictures.shape)}")


def _clean(pictures: Tensor, side: int) -> Tensor:
    result = np.empty((*pictures.shape[:2], side, side), dtype=np.float32)
    channels = pictures.cpu().numpy().astype(np.float32)
    for index in np.ndindex(*channels.shape[:2]):
        resized = Image.fromarray(channels[index]).resize((side, side), Image.Resampling.BICUBIC)
        result[index] = np.asarray(resized).clip(0, 255)
    return torch.from_numpy(result).to(pictures.device)


def _interpolate(x: Tensor, side: int, dim: int) -> Tensor:
    """Linear interpolation of one axis at positions ``i * length / side``; the last pixel is repeated."""
    length = x.shape[dim]
    position = torch.arange(side, dtype=x.dtype, device=x.device) * torch.tensor(length / side, dtype=x.dtype)
    low = position.long()
    shape = [1] * x.ndim
    shape[dim] = side
    fraction = (position - low).view(shape)
    left, right = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp(max=length - 1))
    return left + (right - left) * fraction
