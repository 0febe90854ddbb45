"""TaylorSeer: forecast features on skipped steps from finite differences of the last computed ones.

Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", ICCV 2025, arXiv 2503.06923.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffaccel.forecast import Forecaster, Hold, Newton, Taylor
from diffaccel.methods.checks import check_whole
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.sites import Site

FORECASTS = ("taylor", "newton")
DIFFUSERS = "diffusers"

# Settings of the official code, by the class of the pipeline (the papers' headline tables use order 2 for FLUX).
PRESETS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "DiTPipeline": {"interval": 4, "order": 4, "warmup": 2},
        "FluxPipeline": {"interval": 6, "order": 1, "warmup": 3},
        "FluxKontextPipeline": {"interval": 4, "order": 2, "warmup": 3},
        "HiDreamImagePipeline": {"interval": 4, "order": 2, "warmup": 1},
        "HunyuanImagePipeline": {"interval": 4, "order": 2, "warmup": 3},
        "HunyuanVideoPipeline": {"interval": 5, "order": 1, "warmup": 1},
        "HunyuanVideoFramepackPipeline": {"interval": 5, "order": 0, "warmup": 1},
        "QwenImagePipeline": {"interval": 6, "order": 1, "warmup": 3},
        "WanPipeline": {"interval": 5, "order": 1, "warmup": 1},
    }
)


@dataclass(frozen=True)
class TaylorSeer:
    """Compute every `interval`-th step, forecast the others by a Taylor series of order `order`.

    Differs from the paper: by default one feature is caught, before the final norm and projection (`level="model"`),
    in place of the attention and MLP outputs of all blocks (`level="sublayer"`). At one plan that is a little less
    faithful, at one measured time more, and it takes a fraction of the memory. `forecast="newton"` replaces the paper's
    backward differences, which are off where the spacing of computed steps changes, by the interpolating polynomial.

    Attributes:
        interval: N, steps from one computed step to the next; 1 computes all.
        order: O, highest derivative; 0 is plain reuse (FORA).
        warmup: first_enhance of the official code, the number of computed steps before the first skipped one.
        level: where features are caught, see `diffaccel.sites`.
        forecast: "taylor", the official recursion, or "newton", exact for polynomials at any spacing.
        last: also compute the last step, which the official schedule leaves to chance.
        schedule: a plan of your own; `interval` is then unused, and `warmup` only says which differences are formed.
            "diffusers" is TaylorSeer as diffusers' `TaylorSeerCacheConfig` runs it: one more step is computed after the
            first skipped one, and differences are formed from the second step on.
        after: compute all steps from this one on.

    Raises:
        ValueError: a number out of range, an unknown level, forecast or schedule.
    """

    interval: int = 4
    order: int = 2
    warmup: int = 3
    level: str = "model"
    forecast: str = "taylor"
    last: bool = False
    schedule: Plan | str | None = None
    after: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, interval=1, order=0, warmup=1)
        if self.forecast not in FORECASTS:
            raise ValueError(f"unknown forecast {self.forecast!r}: choose one of {', '.join(FORECASTS)}")
        if self.after is not None:
            check_whole(self, after=0)
        if self.schedule is not None and self.schedule != DIFFUSERS and not isinstance(self.schedule, Plan):
            raise ValueError(f"schedule must be a diffaccel.plan.Plan or {DIFFUSERS!r}, got {self.schedule!r}")

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> TaylorSeer:
        """The official settings for the pipeline class named `pipeline`, changed by `options`."""
        return cls(**{**PRESETS.get(pipeline, {}), **options})

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """One row for all `sites`."""
        if isinstance(self.schedule, Plan):
            plan = self.schedule
        elif self.schedule == DIFFUSERS:
            plan = Plan.diffusers(self.interval, steps, self.warmup)
        else:
            plan = Plan.every(self.interval, steps, self.warmup)
        after = steps if self.after is None else self.after
        return Plan(
            tuple(
                tuple(cell or s >= after or (self.last and s == steps - 1) for s, cell in enumerate(row))
                for row in plan.rows
            )
        )

    def forecaster(self, site: Site, steps: int) -> Forecaster:
        """The same rule for every site."""
        if self.order == 0:
            return Hold()
        # "s > first_enhance - 2": no difference is formed with an anchor before that step.
        start = 0 if self.schedule == DIFFUSERS else max(0, self.warmup - 2)
        return Taylor(self.order, start) if self.forecast == "taylor" else Newton(self.order, start)
