"""Fréchet distance between two sets of features, each taken as a Gaussian; with Inception's features it is the FID.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 4096  # samples that are in float64 at once
_SYMMETRY = 1e-3  # of a covariance, relative to its largest entry: files of others hold float32


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance (divided by n - 1) of features, both in float64.

    Args:
        features: shape (n, d), floating point.

    Returns:
        Shapes (d,) and (d, d).

    Raises:
        TypeError: features that are not floating point.
        ValueError: another shape, fewer than two samples, or numbers that are not finite.
    """
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}")
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"features must have shape (n, d), got {tuple(features.shape)}")
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least two samples, got {len(features)}: generate more pictures")
    if not bool(features.isfinite().all()):
        rows = (~features.isfinite()).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(f"features of {len(rows)} samples are not finite, the first is number {rows[0]}")
    mu = features.mean(dim=0, dtype=torch.float64)
    scatter = torch.zeros(len(mu), len(mu), dtype=torch.float64, device=features.device)
    for block in features.split(_BLOCK):
        centred = block.double() - mu
        scatter += centred.T @ centred
    return mu, scatter / (len(features) - 1)


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians, ``|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2))``.

    With ``sigma1 = root root^T`` the eigenvalues of ``sigma1 sigma2`` are those of the symmetric ``root^T sigma2 root``
    too, so real arithmetic in float64 is enough: no matrix root, no imaginary part, nothing added to the diagonal. A
    ``root`` has only as many columns as ``sigma1`` has rank, which makes few samples cheap. A result that rounding puts
    below 0 is returned as 0.

    Args:
        mu1, mu2: means, shape (d,).
        sigma1, sigma2: covariances, shape (d, d).

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, or a matrix that is no covariance.
    """
    mu1, sigma1, mu2, sigma2 = (tensor.detach().to("cpu", torch.float64) for tensor in (mu1, sigma1, mu2, sigma2))
    _check(mu1, sigma1, mu2, sigma2)
    values, vectors = torch.linalg.eigh(sigma1)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    root = vectors[:, kept] * values[kept].sqrt()
    trace_of_root = torch.linalg.eigvalsh(root.T @ sigma2 @ root).clamp(min=0).sqrt().sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * trace_of_root
    return max(float(distance), 0.0)


def _check(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> None:
    if mu1.shape != mu2.shape:
        raise ValueError(f"both must have one dimension, got means of {tuple(mu1.shape)} and {tuple(mu2.shape)}")
    for number, mu, sigma in ((1, mu1, sigma1), (2, mu2, sigma2)):
        if mu.ndim != 1 or mu.numel() == 0 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"mu{number} and sigma{number} do not fit: {tuple(mu.shape)} and {tuple(sigma.shape)}")
        if not (mu.isfinite().all() and sigma.isfinite().all()):
            raise ValueError(f"mu{number} or sigma{number} holds numbers that are not finite")
        scale = sigma.abs().max()
        if (sigma - sigma.T).abs().max() > _SYMMETRY * scale or sigma.diagonal().min() < -_SYMMETRY * scale:
            raise ValueError(f"sigma{number} is no covariance: it must be symmetric with a diagonal of at least 0")
