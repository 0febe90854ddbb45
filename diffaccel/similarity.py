"""How alike the outputs of one block are at any two steps of a run: from features to a table of all pairs.

The table tells what reusing an output would spoil. Cosine, l2 and mse come from the Gram matrix of the steps, which is
one matrix product; l1 and wasserstein need every pair of features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffaccel.segments import Array, Better

Features = Tensor | npt.NDArray[np.generic] | Sequence["Features"] | Sequence[float]


def similarity(features: Features, metric: str = "cosine", samples: bool = False) -> Array:
    """How alike (or, by a distance, how far apart) a block's outputs at any two steps are.

    Each step's output is one vector, whatever its shape was. Computed in float64.

    Args:
        features: outputs in order of execution, shape (steps, ...); of several samples, shape (n, steps, ...).
        metric: "cosine"; "l1", mean absolute difference; "l2", Euclidean distance; "mse", mean squared difference;
            "wasserstein", distance between the distributions of the numbers, wherever they stand. `BETTER` says
            which are similarities. Of an output that is zero at both steps the cosine is 1, at one of them 0.
        samples: whether the first axis is that of samples. The table is the mean of each sample's own.

    Returns:
        Shape (steps, steps), symmetric.

    Raises:
        ValueError: an unknown metric, fewer than two steps, no sample, no number, or NaN or infinity among them.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: take one of {', '.join(METRICS)}")
    of_samples = vectors(features, samples)
    table = torch.stack([METRICS[metric](one.double()) for one in of_samples]).mean(0)
    return np.asarray(table.numpy(), dtype=np.float64)


def vectors(features: Features, samples: bool = False) -> Tensor:
    """Features as one vector for each step: from (steps, ...), or (n, steps, ...), to (n, steps, numbers), on the CPU.

    Raises:
        ValueError: see `similarity`.
    """
    whole = stacked(features).detach().cpu()
    axes = "(samples, steps, ...)" if samples else "(steps, ...)"
    if whole.ndim < 2 + samples or not whole.numel():
        raise ValueError(f"features must have shape {axes} and not be empty, got {tuple(whole.shape)}")
    flat = whole.flatten(2) if samples else whole.flatten(1).unsqueeze(0)
    if flat.shape[1] < 2:
        raise ValueError(f"features of shape {axes} need at least 2 steps to compare, got {tuple(whole.shape)}")
    if not flat.isfinite().all():
        raise ValueError("features hold NaN or infinity: check the run they were recorded in, and its dtype")
    return flat


def stacked(features: Features) -> Tensor:
    """One tensor of what may be nested sequences of tensors, arrays or numbers; ValueError if their shapes differ."""
    if isinstance(features, Sequence) and features and not isinstance(features[0], int | float):
        parts = [stacked(part) for part in features]  # type: ignore[arg-type]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"all features need one shape, got {sorted({tuple(part.shape) for part in parts})}")
        return torch.stack(parts)
    # By numpy, which keeps all digits of Python's numbers; a copy, since torch takes no reversed or read-only array.
    return features if isinstance(features, Tensor) else torch.from_numpy(np.array(features, order="C"))


def _gram(one: Tensor) -> Tensor:
    """All inner products; a matrix product alone is symmetric only to rounding."""
    gram = one @ one.T
    return (gram + gram.T) / 2


def _cosine(one: Tensor) -> Tensor:
    norms = one.norm(dim=1, keepdim=True)
    silent = norms == 0
    units = one / torch.where(silent, 1.0, norms)
    table = torch.where(silent & silent.T, 1.0, _gram(units))
    return table.clamp(-1, 1).fill_diagonal_(1)


def _squares(one: Tensor) -> Tensor:
    """Squared Euclidean distances, |a|^2 + |b|^2 - 2 a.b, which loses nothing of note once the mean is taken off."""
    centred = one - one.mean(0)
    gram = _gram(centred)
    power = gram.diagonal()
    return (power + power.unsqueeze(1) - 2 * gram).clamp_min(0).fill_diagonal_(0)


def _l1(one: Tensor) -> Tensor:
    return torch.cdist(one, one, p=1) / one.shape[1]


def _wasserstein(one: Tensor) -> Tensor:
    """Between two sets of equally many numbers: the mean difference of the smallest, the next, and so on."""
    return _l1(one.sort(dim=1).values)


METRICS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "cosine": _cosine,
        "l1": _l1,
        "l2": lambda one: _squares(one).sqrt(),
        "mse": lambda one: _squares(one) / one.shape[1],
        "wasserstein": _wasserstein,
    }
)

BETTER: Mapping[str, Better] = MappingProxyType(
    {metric: "higher" if metric == "cosine" else "lower" for metric in METRICS}
)
