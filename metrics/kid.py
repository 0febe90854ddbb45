"""Kernel distance of two sets of features, called KID on those of the FID Inception."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm


def kid(
    features: Tensor, reference: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0, progress: bool = False
) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the cubic kernel `(x.y / d + 1)^3` (Binkowski et al. 2018).

    The estimator is unbiased, so it holds for few pictures and may come out negative. It is averaged over random
    subsets of both sets, by torchmetrics' `poly_mmd` in float64. Where a set is smaller than `size`, subsets of its
    size are taken; where neither is larger, all subsets are the whole sets, and the deviation is 0.

    Args:
        features: shape (n, d), n >= 2.
        reference: shape (m, d), m >= 2, of the same extractor.
        subsets: number of subsets.
        size: rows of a subset.
        seed: of the subsets, which leaves torch's own random state alone. They are those that torchmetrics'
            `KernelInceptionDistance` draws after `torch.manual_seed(seed)`.
        progress: show a progress bar on stderr.

    Returns:
        Mean and standard deviation over the subsets. The deviation is that of subsets, not an error of the mean.

    Raises:
        ValueError: other shapes, values that are not finite, fewer than 2 rows, or `subsets` or `size` too small.
        ImportError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.image.kid import poly_mmd
    except ImportError as error:
        raise ImportError("the kernel distance needs torchmetrics: pip install 'diffaccel[eval]'") from error
    check_features(features, reference)
    if subsets < 1 or size < 2:
        raise ValueError(f"subsets must be at least 1 and size at least 2, got {subsets} and {size}")
    fake, real = features.double(), reference.double()
    size = min(size, len(fake), len(real))
    if size == len(fake) == len(real):
        return poly_mmd(real, fake).item(), 0.0
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in tqdm(range(subsets), desc="kernel distance", unit="subset", disable=not progress):
        rows = [torch.randperm(len(x), generator=generator)[:size].to(x.device) for x in (real, fake)]
        values.append(poly_mmd(real[rows[0]], fake[rows[1]]))
    scores = torch.stack(values)
    return scores.mean().item(), scores.std(unbiased=False).item()


def check_features(features: Tensor, reference: Tensor, least: int = 2) -> None:
    """Raise ValueError unless both are finite, of shapes (n, d) and (m, d), with at least `least` rows each."""
    for name, tensor in (("features", features), ("reference", reference)):
        if tensor.ndim != 2:
            raise ValueError(f"{name} must have shape (n, dimension), got {tuple(tensor.shape)}")
        if len(tensor) < least:
            raise ValueError(f"{name} must have at least {least} rows, got {len(tensor)}: give more pictures")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite: look for broken pictures")
    if features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features have {features.shape[1]} dimensions and the reference {reference.shape[1]}: "
            "use one extractor for both"
        )
