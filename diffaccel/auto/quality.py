"""How near pictures come to those of the full run: a mean over few pictures, with an interval that is wide enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any

HIGHEST = 120.0
"""PSNR in dB that identical pictures count as: what is left of rounding in float32."""


@dataclass(frozen=True)
class Quality:
    """PSNR to the full run in dB, over pictures.

    Attributes:
        mean: over pictures.
        low: lower end of the 95% interval of the mean.
        high: its upper end.
        worst: of the picture that is worst.
        n: number of pictures.
    """

    mean: float
    low: float
    high: float
    worst: float
    n: int

    @classmethod
    def of(cls, psnr: Sequence[float]) -> Quality:
        """From one PSNR a picture, by Student's t, whose interval holds for a handful of pictures too.

        Raises:
            ValueError: fewer than 2 pictures.
        """
        values, n = [min(value, HIGHEST) for value in psnr], len(psnr)
        if n < 2:
            raise ValueError(f"an interval needs at least 2 pictures, got {n}")
        mean, margin = fmean(values), students_t(n - 1) * stdev(values) / sqrt(n)
        return cls(mean, mean - margin, mean + margin, min(values), n)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.mean:.1f} dB (95% interval {self.low:.1f} to {self.high:.1f}, worst of {self.n} {self.worst:.1f})"
        )


def students_t(degrees: int, level: float = 0.95) -> float:
    """Two-sided quantile of Student's t, by the expansion of Abramowitz and Stegun 26.7.5; off by 1% at 3 degrees."""
    z, v = NormalDist().inv_cdf((1 + level) / 2), degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3
