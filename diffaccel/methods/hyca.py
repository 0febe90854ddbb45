"""HyCa: groups of feature dimensions, each forecast by the ODE solver that suits it.

"Let Features Decide Their Own Solvers: Hybrid Feature Caching for Diffusion Transformers", ICLR 2026, arXiv 2510.04188.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from diffaccel.forecast import POOL, STRICT_POOL, Grouped, Solver
from diffaccel.methods.checks import check_most, check_whole
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.calibration import Calibration, Source
    from diffaccel.dimensions import ByDimension
    from diffaccel.sites import Site


@dataclass(frozen=True)
class HyCa:
    """Compute every `interval`-th step, forecast each cluster of feature dimensions by its own solver.

    The solver of a cluster is chosen once, on the calibration: the one with the smallest error over offsets 1 to
    `interval` - 1. Differs from the paper, which has no code and leaves much open: it chooses by the next step alone
    (`strict=True` does), has no plain reuse in its pool (nor has `strict`), and catches the residual outputs of blocks
    (`level="sublayer"` is nearest; the default catches one feature, see docs/decisions/0001).

    Attributes:
        interval: N, steps from one computed step to the next.
        clusters: C, groups of dimensions of each feature, 2 to 8.
        warmup: computed steps before the first skipped one.
        level: where features are caught, see `diffaccel.sites`.
        last: also compute the last step.
        strict: the paper's pool and its choice by the next step.
        calibration: a file, a folder, prompts to record one with, or None for the one in the pipeline's folder.

    Raises:
        ValueError: a number out of range.
    """

    interval: int = 4
    clusters: int = 4
    warmup: int = 3
    level: str = "model"
    last: bool = False
    strict: bool = False
    calibration: Calibration | Source = None
    network: str | None = field(default=None, repr=False)  # see for_network

    def __post_init__(self) -> None:
        check_whole(self, interval=1, clusters=2, warmup=1)
        check_most(self, clusters=8)

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> HyCa:
        """The paper names intervals per model, not per pipeline class: the defaults, changed by `options`."""
        return cls(**options)

    @property
    def order(self) -> int:
        """Anchors used, less one."""
        return 2

    def calibrated(self, pipe: Any) -> HyCa:
        """With its calibration found and checked. Raises as `diffaccel.calibration.find`."""
        from diffaccel.calibration import find

        return replace(self, calibration=find(pipe, self.calibration, self.level))

    def for_network(self, name: str) -> HyCa:
        """For one of a pipeline's denoisers."""
        return replace(self, network=name)

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """One row for all `sites`."""
        return Plan.every(self.interval, steps, self.warmup, self.last)

    def forecaster(self, site: Site, steps: int) -> ByDimension:
        """A solver for each cluster of each tensor the site returns."""
        from diffaccel.calibration import ready

        key = (replace(self, calibration=None), site.name, steps)
        return ready(self).once(key, lambda: self._forecaster(site, steps))

    def _forecaster(self, site: Site, steps: int) -> ByDimension:
        import torch

        from diffaccel.calibration import ready
        from diffaccel.dimensions import ByDimension

        calibration, labels = ready(self), {}
        solvers: list[str] = []
        for moments in calibration.moments(self.network, site.name, steps):
            own = calibration.labels(self.network, site.name, moments.leaf, self.clusters, steps)
            labels[moments.leaf] = torch.tensor(own) + len(solvers)
            solvers += self.solvers(moments, own)
        # History starts at max(0, FE - 2), as in TaylorSeer; with two anchors every solver is tf1.
        start = max(0, self.warmup - 2)
        return ByDimension(Grouped(tuple(Solver(name, start, needs=3) for name in solvers)), labels)

    def solvers(self, moments: Any, labels: Sequence[int]) -> tuple[str, ...]:
        """The solver of each cluster of a feature, chosen on its moments."""
        from diffaccel.clusters import amplification, choose, solver_errors

        pool = STRICT_POOL if self.strict else POOL
        spacing, horizon = (1, 1) if self.strict else (self.interval, max(1, self.interval - 1))
        errors = solver_errors(moments, pool, spacing, horizon)
        return choose(errors, labels, {name: amplification(name) for name in pool})
