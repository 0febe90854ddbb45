"""Statistics of a set of features, and their files: ours, pytorch-fid's and clean-fid's, and the ADM evaluator's."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffaccel.metrics.features import Features, Identity
from diffaccel.metrics.fid import gaussian

_PAIRS = ("mu", "sigma", "mu_s", "sigma_s")


@dataclass(frozen=True)
class Statistics:
    """Statistics of n features.

    Attributes:
        mu: mean, shape (d,), float64.
        sigma: unbiased covariance, shape (d, d), float64.
        n: how many features; None in files of others, which do not say.
        features: some of the features, shape (m, d), float32, for kernel distance, precision and recall, or None.
        spatial_mu, spatial_sigma: the same of spatial features, None without.
        identity: the extractor; None in files of others, which do not say.
    """

    mu: Tensor
    sigma: Tensor
    n: int | None = None
    features: Tensor | None = None
    spatial_mu: Tensor | None = None
    spatial_sigma: Tensor | None = None
    identity: Identity | None = None

    def save(self, file: Path | str) -> None:
        """Write an ``.npz`` file, whole or not at all; pytorch-fid and clean-fid read its ``mu`` and ``sigma``."""
        file = Path(file)
        tensors = {
            "mu": self.mu,
            "sigma": self.sigma,
            "mu_s": self.spatial_mu,
            "sigma_s": self.spatial_sigma,
            "features": self.features,
        }
        arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
        if self.n is not None:
            arrays["n"] = np.array(self.n)
        if self.identity is not None:
            arrays["identity"] = np.array(json.dumps(self.identity.as_dict()))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


def of(features: Features, identity: Identity, keep: int = 10_000) -> Statistics:
    """Statistics of the features of one extractor.

    Args:
        features: of at least two pictures.
        identity: of the extractor.
        keep: how many features are kept at most, evenly spaced, so that sorted classes all stay represented.

    Raises:
        ValueError: too few features, features that are not finite, or of another dimension than the extractor's.
    """
    n, dimension = features.pooled.shape
    if dimension != identity.dimension:
        raise ValueError(f"features of {identity.name} have dimension {identity.dimension}, these have {dimension}")
    if keep < 0:
        raise ValueError(f"keep must be at least 0, got {keep}")
    rows = torch.arange(n) if n <= keep else torch.arange(keep) * n // keep
    mu, sigma = gaussian(features.pooled)
    spatial_mu, spatial_sigma = (None, None) if features.spatial is None else gaussian(features.spatial)
    return Statistics(mu, sigma, n, features.pooled[rows] if keep else None, spatial_mu, spatial_sigma, identity)


def load(file: Path | str) -> Statistics:
    """Read a statistics file: ours, pytorch-fid's and clean-fid's (``mu``, ``sigma``), or ADM's (also ``mu_s``).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no statistics.
    """
    arrays = _read(Path(file))
    tensors = {name: torch.from_numpy(arrays[name]) for name in (*_PAIRS, "features") if name in arrays}
    for mu, sigma in (_PAIRS[:2], _PAIRS[2:]):
        if mu in tensors and (tensors[mu].ndim != 1 or tensors[sigma].shape != 2 * tensors[mu].shape):
            shapes = " and ".join(str(tuple(tensors[name].shape)) for name in (mu, sigma))
            raise ValueError(f"{file}: {mu} and {sigma} must have shapes (d,) and (d, d), got {shapes}")
    n = int(arrays["n"]) if "n" in arrays else None
    identity = _identity(Path(file), str(arrays["identity"])) if "identity" in arrays else None
    return Statistics(
        mu=tensors["mu"].double(),
        sigma=tensors["sigma"].double(),
        n=n,
        features=tensors.get("features"),
        spatial_mu=tensors["mu_s"].double() if "mu_s" in tensors else None,
        spatial_sigma=tensors["sigma_s"].double() if "sigma_s" in tensors else None,
        identity=identity,
    )


def _identity(file: Path, text: str) -> Identity:
    try:
        return Identity.from_dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: its record of the extractor is damaged: {error}") from error


def _read(file: Path) -> dict[str, Any]:
    """The arrays of a statistics file that we know, with both of a pair or none."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no statistics file {file}")
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz archive")
        with np.load(file, allow_pickle=False) as archive:
            names = list(archive.files)
            arrays = {name: archive[name] for name in (*_PAIRS, "features", "n", "identity") if name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} is no statistics file, or damaged: {error}") from error
    if not {"mu", "sigma"} <= arrays.keys() or ("mu_s" in arrays) != ("sigma_s" in arrays):
        hint = " (arr_0 are pictures: make statistics of them first)" if "arr_0" in names else ""
        raise ValueError(f"{file} must hold mu and sigma, and mu_s with sigma_s; it holds {', '.join(names)}{hint}")
    return arrays


def check(statistics: Statistics, identity: Identity, trust: bool = False) -> None:
    """Refuse a reference that is not known to come from this extractor.

    Args:
        statistics: of the reference.
        identity: of the extractor whose features are to be compared with it.
        trust: take a reference without a record at its user's word; one with a record is still compared.

    Raises:
        ValueError: it comes from another extractor, or does not say from which.
    """
    if len(statistics.mu) != identity.dimension:
        raise ValueError(
            f"the reference is of dimension {len(statistics.mu)}, features of {identity.name} of {identity.dimension}"
        )
    if statistics.identity is None:
        if not trust:
            raise ValueError(
                "the reference does not say which extractor made it; resize, range and weights change the distance. "
                f"If you know that it was {identity.name} with resize {identity.resize}, say so with trust=True"
            )
    elif difference := statistics.identity.difference(identity):
        raise ValueError(f"the reference was made with another extractor: {difference}; make it again with this one")
