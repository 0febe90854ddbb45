"""Fitted: the weights of every forecast come from the moments of the pipeline's own features. Not from a paper.

Every forecasting method of the field is a weighted sum of anchors with weights from numerical analysis, computed at
even steps. Given a calibration, the best weights are a linear regression (`diffaccel.fitting`), and the best steps a
shortest path (`diffaccel.scheduling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from diffaccel.methods.checks import check_most, check_whole
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.calibration import Calibration, Source
    from diffaccel.dimensions import ByDimension
    from diffaccel.fitting import Table
    from diffaccel.sites import Site


SCHEDULES = ("best", "even")


@dataclass(frozen=True)
class Fitted:
    """Compute the steps that the calibration shows to matter, forecast the others with weights fitted to it.

    Attributes:
        interval: as many steps are computed as if it were every `interval`-th, `warmup` at the beginning and the last.
        computed: number of computed steps; given, it replaces `interval`.
        schedule: "best", the steps with the smallest error on the calibration; "even", every `interval`-th; or a plan.
        anchors: most computed steps a forecast uses; None takes what the calibration found best, see `tuned`.
        feedback: share of the error added up so far that is taken out in the next skipped steps, see
            `diffaccel.fitting`; None as for `anchors`.
        clusters: groups of dimensions with weights of their own: 1, 2 to 8, or 0 for every dimension.
        ridge: pulls weights towards plain reuse, relative to the spread of the regressors.
        warmup: of the even schedule, computed steps before the first skipped one.
        level: where features are caught, see `diffaccel.sites`.
        last: of the even schedule, also compute the last step.
        calibration: a file, a folder, prompts to record one with, or None for the one in the pipeline's folder.

    Raises:
        ValueError: a number out of range, or an unknown schedule.
    """

    interval: int = 4
    computed: int | None = None
    schedule: str | Plan = "best"
    anchors: int | None = None
    feedback: float | None = None
    clusters: int = 1
    ridge: float = 1e-4
    warmup: int = 3
    level: str = "model"
    last: bool = True
    calibration: Calibration | Source = None
    network: str | None = field(default=None, repr=False)  # see for_network

    def __post_init__(self) -> None:
        check_whole(self, interval=1, clusters=0, warmup=1, **({} if self.anchors is None else {"anchors": 1}))
        check_most(self, clusters=8)
        if self.computed is not None:
            check_whole(self, computed=1)
            if self.schedule == "even":
                raise ValueError(
                    'an even schedule is told by its interval: leave out computed, or take schedule="best"'
                )
        if self.schedule not in SCHEDULES and not isinstance(self.schedule, Plan):
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)} or a Plan, got {self.schedule!r}")
        for name in ("feedback", "ridge"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> Fitted:
        """The defaults, changed by `options`."""
        return cls(**options)

    @property
    def order(self) -> int:
        """Most anchors used, less one."""
        return (self.anchors or 3) - 1

    def tuned(self, steps: int) -> tuple[int, float]:
        """Anchors and feedback: those given, those tuned on the calibration's prompts, or a rule of thumb.

        The rule is from the bundled pipeline (docs/decisions/0005): feedback pays while gaps are short.
        """
        from diffaccel.calibration import ready

        count = len(self.plan([], steps).computed())
        found = ready(self).tuned(count, steps) or ((3, 0.25) if steps <= 3 * count else (2, 0.0))
        return self.anchors or found[0], found[1] if self.feedback is None else self.feedback

    def calibrated(self, pipe: Any) -> Fitted:
        """With its calibration found and checked. Raises as `diffaccel.calibration.find`."""
        from diffaccel.calibration import find

        return replace(self, calibration=find(pipe, self.calibration, self.level))

    def for_network(self, name: str) -> Fitted:
        """For one of a pipeline's denoisers."""
        return replace(self, network=name)

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """One row for all `sites`. Without a calibration, as before a pipeline is known, the even one."""
        from diffaccel.calibration import Calibration

        if isinstance(self.schedule, Plan):
            return self.schedule
        even = Plan.every(self.interval, steps, self.warmup, self.last)
        if self.schedule == "even" or not isinstance(self.calibration, Calibration):
            return even
        key, count = (replace(self, calibration=None), "plan", steps), self.computed or len(even.computed())
        return self.calibration.once(key, lambda: self._best_plan(steps, count)) or even

    def _best_plan(self, steps: int, count: int) -> Plan | None:
        """The best plan of so many computed steps; None for a network that works in one part of the run only."""
        from diffaccel.calibration import ready
        from diffaccel.scheduling import best_plans, check_count

        check_count(count, steps)
        calibration = ready(self)
        features = calibration.features(self.network, steps)
        if any(len(moments.steps) < steps for moments in features):
            return None
        key = ("plans", self.network, steps)
        return calibration.once(key, lambda: best_plans(features, calibration.responses(steps)))[count]

    def forecaster(self, site: Site, steps: int) -> ByDimension:
        """Weights of every skipped step for each group of dimensions of each tensor the site returns."""
        from diffaccel.calibration import ready

        key = (replace(self, calibration=None), site.name, steps)
        return ready(self).once(key, lambda: self._forecaster(site, steps))

    def _forecaster(self, site: Site, steps: int) -> ByDimension:
        import torch

        from diffaccel.calibration import ready
        from diffaccel.dimensions import ByDimension
        from diffaccel.fitting import Fit, fit, joined

        calibration, plan, (anchors, feedback) = ready(self), self.plan([site], steps), self.tuned(steps)
        # Errors of features inside the network do not add up in the latent.
        how = Fit(anchors, self.ridge, feedback if self.level == "model" else 0.0)
        tables: list[Table] = []
        labels = {}
        for moments in calibration.moments(self.network, site.name, steps):
            if self.clusters in (0, 1):
                own = torch.arange(moments.dims) * (self.clusters == 0)
            else:
                own = torch.tensor(calibration.labels(self.network, site.name, moments.leaf, self.clusters, steps))
            labels[moments.leaf] = own + sum(table.groups for table in tables)
            tables.append(fit(moments, own, plan, calibration.responses(steps), how))
        return ByDimension(joined(tables), labels)
