"""Intervals: how far an estimate from n samples may be off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from statistics import NormalDist

import torch
from torch import Tensor
from tqdm.auto import tqdm

BLOCK = 2**22
"""Row indices drawn at once, so that memory stays the same for any number of samples."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate from all samples.
        low: lower end of the interval; None where `n` samples say nothing about it.
        high: upper end, likewise.
        n: number of samples.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The fields by name, ready for JSON."""
        return asdict(self)


def mean_interval(
    values: Tensor | Sequence[float], resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """Mean with the percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    The samples are drawn with replacement `resamples` times, and the interval holds the middle `level` of the means. It
    is too short for a handful of samples, by nearly a fifth at ten. For a paired comparison give the differences.

    Args:
        values: shape (n,), finite.
        resamples: number of resampled sets.
        seed: of the resampling, which leaves torch's own random state alone.
        level: share of intervals that hold the true mean.

    Returns:
        The mean; without an interval if there is but one value.

    Raises:
        ValueError: no value, more than one axis, a value that is not finite, or `resamples` or `level` out of range.
    """
    _check(resamples, level)
    rows = torch.as_tensor(values, dtype=torch.float64).cpu()
    if rows.ndim != 1 or not len(rows):
        raise ValueError(f"values must have shape (n,) with at least one value, got {tuple(rows.shape)}")
    if not (finite := rows.isfinite()).all():
        raise ValueError(
            f"{len(rows) - int(finite.sum())} of {len(rows)} values are not finite: leave them out and count them"
        )
    mean, n = rows.mean().item(), len(rows)
    if n == 1:
        return Estimate(mean, None, None, n)
    generator, size = torch.Generator().manual_seed(seed), max(1, BLOCK // n)
    means = torch.cat(
        [
            rows[torch.randint(n, (min(size, resamples - start), n), generator=generator)].mean(dim=1)
            for start in range(0, resamples, size)
        ]
    )
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Estimate(mean, low, high, n)


def statistic_interval(
    function: Callable[[Tensor], float],
    n: int,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
    progress: bool = False,
) -> Estimate:
    """A statistic of a set of samples, plus and minus z standard errors of it over resampled sets; z is 1.96 for .95.

    Meant for distances between sets. Sets drawn with replacement hold each sample more or less often and are further
    from any reference than the set itself, so the resampled distances lie too high as a whole and their percentiles
    would miss the estimate. Their spread is used, their place is not. The interval says nothing of the bias that the
    estimate itself has at this n, which for the Frechet distance is large.

    Args:
        function: row indices of shape (n,) to the statistic of these rows. It is called first with 0, 1, ..., n - 1.
        n: number of samples, at least 2.
        resamples: number of resampled sets, at least 2; each costs one call.
        seed: of the resampling, which leaves torch's own random state alone.
        level: share of intervals that hold the true value, if the statistic is close to normal.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: a number out of range, or a statistic that is not finite.
    """
    _check(resamples, level)
    if n < 2 or resamples < 2:
        raise ValueError(f"a standard error needs at least 2 samples and 2 resampled sets, got {n} and {resamples}")
    generator, value = torch.Generator().manual_seed(seed), float(function(torch.arange(n)))
    turns = tqdm(range(resamples), desc="bootstrap", unit="set", disable=not progress)
    values = [float(function(torch.randint(n, (n,), generator=generator))) for _ in turns]
    if not all(isfinite(number) for number in (value, *values)):
        raise ValueError(f"the statistic of {n} samples is not finite in every resampled set: take more samples")
    margin = _quantile(level) * torch.tensor(values, dtype=torch.float64).std().item()
    return Estimate(value, value - margin, value + margin, n)


def share_interval(hits: Tensor | Sequence[bool], level: float = 0.95) -> Estimate:
    """Share of hits with Wilson's score interval (Wilson 1927), which stays within 0..1 and holds at 0 and n hits too.

    Args:
        hits: booleans of shape (n,), or numbers that are 0 or 1.
        level: share of intervals that hold the true share.

    Raises:
        ValueError: no value, more than one axis, a value other than 0 and 1, or `level` out of range.
    """
    _check(1, level)
    rows = torch.as_tensor(hits).double().cpu()
    if rows.ndim != 1 or not len(rows):
        raise ValueError(f"hits must have shape (n,) with at least one value, got {tuple(rows.shape)}")
    if not ((rows == 0) | (rows == 1)).all():
        raise ValueError("hits must be True or False, 1 or 0")
    n, share, z = len(rows), rows.mean().item(), _quantile(level)
    # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    middle, margin = share + z**2 / (2 * n), z * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * margin) / (1 + z**2 / n) for sign in (-1, 1))
    return Estimate(share, max(low, 0.0), min(high, 1.0), n)


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _check(resamples: int, level: float) -> None:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
