"""Groups of feature dimensions that move alike, and the solver that suits each group (HyCa, arXiv 2510.04188).

k-means is scikit-learn's; it is needed where a calibration is made, not where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from diffaccel.descriptors import KINDS
from diffaccel.forecast import SOLVERS
from diffaccel.moments import Moments

COUNTS = range(2, 9)
"""Numbers of clusters a calibration holds."""
_USED = ("first_difference", "second_difference", "energy", "jerk_ratio", "curvature_ratio", "spectral_flatness")
_RATIOS = ("jerk_ratio", "curvature_ratio")
_TIE = 1e-9


def table(descriptors: Tensor) -> Tensor:
    """What k-means sees: descriptors as z-scores over dimensions, ratios after log1p.

    Args:
        descriptors: kinds as in `diffaccel.descriptors.KINDS`, shape (kinds, dims).

    Returns:
        Shape (dims, 6), float64.
    """
    columns = [
        values.log1p() if kind in _RATIOS else values
        for kind, values in zip(KINDS, descriptors.double(), strict=True)
        if kind in _USED
    ]
    rows = torch.stack(columns, dim=1)
    deviation = rows.std(0)
    return (rows - rows.mean(0)) / torch.where(deviation > 0, deviation, 1.0)


def cluster(descriptors: Tensor, clusters: int, seed: int = 0) -> list[int]:
    """The cluster of each dimension, by k-means on `table`.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn.cluster import KMeans

    rows = table(descriptors)
    labels: list[int] = KMeans(min(clusters, len(rows)), n_init=10, random_state=seed).fit_predict(rows).tolist()
    return labels


def describe(moments: Moments, clusters: int, runs: int = 8) -> dict[str, float]:
    """How clear and how stable a clustering is.

    Returns:
        "silhouette" of the pooled descriptors, and "rand", the mean adjusted Rand index between clusterings of single
        runs (other prompts, other seeds), over at most `runs` of them; 1 where all agree, 0 by chance.
    """
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    labels = cluster(moments.descriptors.mean(0), clusters)
    single = [cluster(one, clusters) for one in moments.descriptors[:runs]]
    indices = [float(adjusted_rand_score(a, b)) for a, b in combinations(single, 2)]
    clear = float(silhouette_score(table(moments.descriptors.mean(0)), labels)) if len(set(labels)) > 1 else 0.0
    return {"silhouette": clear, "rand": sum(indices) / len(indices) if indices else 1.0}


def solver_errors(moments: Moments, pool: Sequence[str], interval: int, horizon: int) -> Mapping[str, Tensor]:
    """Mean squared error of each solver by dimension, shape (dims,), over all places in the run and all offsets.

    Args:
        moments: of the feature.
        pool: names in `SOLVERS`.
        interval: spacing of the three anchors.
        horizon: offsets 1..horizon are forecast.

    Raises:
        ValueError: the run is too short for anchors of this spacing.
    """
    first, last = moments.steps[0], moments.steps[-1]
    totals = {name: torch.zeros(moments.dims, dtype=torch.float64) for name in pool}
    motion = moments.centred.diagonal(dim1=1, dim2=2).amax(1).double()
    count = 0
    for offset in range(1, horizon + 1):
        places = range(first + 2 * interval, last - offset + 1)  # of the newest anchor
        if not places:
            continue
        count += len(places)
        rows = torch.tensor([moments.rows([s + offset, s, s - interval, s - 2 * interval]) for s in places])
        # The weights are the same at all places, and sum to 1, so that means over steps drop out.
        grams = moments.centred[:, rows.unsqueeze(2), rows.unsqueeze(1)].double().sum(1)
        for name in pool:
            times: list[Any] = [2.0 * interval, 1.0 * interval, 0.0]
            weights = SOLVERS[name].weights(times, times[0] + offset)
            v = torch.tensor([1.0, *(-float(weight) for weight in weights)], dtype=torch.float64)
            # Moments are rounded to float32: smaller errors, as those on straight lines, cannot be told from 0.
            rounding = torch.finfo(torch.float32).eps / 2 * float(v.abs().sum()) ** 2 * len(places)
            totals[name] += (grams @ v @ v).maximum(rounding * motion)
    if not count:
        raise ValueError(
            f"runs of {len(moments.steps)} steps are too short to choose solvers at interval {interval}: it takes "
            f"{2 * interval + 2} steps; calibrate with more steps, or choose a smaller interval"
        )
    return {name: total / count for name, total in totals.items()}


def choose(errors: Mapping[str, Tensor], labels: Sequence[int], weights: Mapping[str, float]) -> tuple[str, ...]:
    """The solver of each cluster: the one with the smallest mean error over its dimensions.

    Args:
        errors: by solver, shape (dims,).
        labels: cluster of each dimension.
        weights: by solver, the sum of its weights' absolute values; of equal errors the smaller one is taken.
    """
    groups = torch.tensor(labels)
    chosen = []
    for group in range(max(labels) + 1):
        own = groups == group  # nobody, where k-means found fewer clusters than asked for
        means = {name: float(values[own].mean()) if own.any() else 0.0 for name, values in errors.items()}
        limit = min(means.values()) * (1 + _TIE)
        chosen.append(min((name for name in means if means[name] <= limit), key=lambda name: weights[name]))
    return tuple(chosen)


def amplification(name: str) -> float:
    """Sum of the absolute weights of a solver one even spacing ahead: how much it can enlarge noise."""
    times: list[Any] = [2.0, 1.0, 0.0]
    return sum(abs(float(weight)) for weight in SOLVERS[name].weights(times, 3.0))
