"""Improved precision and recall: how much of one set of features lies among the other's, either way round."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.metrics.kid import check_features

BLOCK = 2**23
"""Distances held at once, 64 MB of them."""
_ROUNDING = 1e-12  # of a squared distance, relative to the squared norms it is a difference of


def precision_recall(features: Tensor, reference: Tensor, k: int = 3, progress: bool = False) -> tuple[float, float]:
    """Precision and recall of Kynkaanniemi et al. 2019, in float64.

    A set's manifold is the union of balls around its samples, each reaching to the k-th nearest other sample. Precision
    is the share of the features in the reference's manifold, recall the share of the reference in the features'.

    Both depend on the numbers of samples, which published values state (50,000 of each in the paper). Time grows with
    (n + m)^2 d, memory only with n + m.

    Args:
        features: shape (n, d), n > k.
        reference: shape (m, d), m > k, of the same extractor.
        k: which neighbour a ball reaches to, not counting the sample itself.
        progress: show progress bars on stderr.

    Raises:
        ValueError: other shapes, values that are not finite, `k` below 1, or no more rows than `k`.
    """
    check_features(features, reference, least=_checked(k) + 1)
    precision = covered(features, reference, k, progress)
    recall = covered(reference, features, k, progress)
    return precision.double().mean().item(), recall.double().mean().item()


def covered(samples: Tensor, reference: Tensor, k: int = 3, progress: bool = False) -> Tensor:
    """Whether each sample lies in the reference's manifold, the border included.

    Args:
        samples: shape (n, d).
        reference: shape (m, d), m > k.
        k: see `precision_recall`.
        progress: likewise.

    Returns:
        Booleans of shape (n,).

    Raises:
        ValueError: see `precision_recall`.
    """
    check_features(samples, reference, least=1)
    if len(reference) <= _checked(k):
        raise ValueError(f"the reference must have at least {k + 1} rows, got {len(reference)}: give more pictures")
    x, y = samples.double(), reference.double()
    radii = squared_radii(y, k, progress)
    size = max(1, BLOCK // len(y))
    parts = tqdm(x.split(size), desc="samples in the manifold", unit="block", disable=not progress)
    return torch.cat([(_squared_distances(part, y) <= radii + _slack(part, y)).any(dim=1) for part in parts])


def squared_radii(reference: Tensor, k: int, progress: bool = False) -> Tensor:
    """Squared distance of each row of the float64 [m, d] `reference` to its k-th nearest other row, shape (m,)."""
    size = max(1, BLOCK // len(reference))
    parts = tqdm(reference.split(size), desc="radii of the manifold", unit="block", disable=not progress)
    # The nearest row of all is the row itself.
    return torch.cat([_squared_distances(part, reference).kthvalue(k + 1, dim=1).values for part in parts])


def _checked(k: int) -> int:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y
    return torch.addmm(_norms(x, y), x, y.T, alpha=-2)


def _slack(x: Tensor, y: Tensor) -> Tensor:
    """What rounding may add to a distance: without it copies would miss balls of radius 0 by chance."""
    return _ROUNDING * _norms(x, y)


def _norms(x: Tensor, y: Tensor) -> Tensor:
    return x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
