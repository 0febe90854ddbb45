"""Innovation: forecasts that follow the sample, as a method. Not from a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffaccel.forecast import Forecaster, Hold
from diffaccel.methods.checks import check_most, check_whole, check_word
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.innovation import Statistics
    from diffaccel.sites import Site

SCHEDULES = ("best", "even")


@dataclass(frozen=True)
class Innovation:
    """Forecast the network's output from the last computed ones and from the sample it is asked about.

    For networks whose output has the shape of their sample. Made for stochastic samplers, such as DDPM with 100 steps,
    where what a network returns depends on noise that no earlier output knows of (`diffaccel.innovation`).

    Attributes:
        calibration: observations of a policy, or prompts of a pipeline that draws pictures, a dozen or more; or
            statistics, or a file that `statistics.save(path)` wrote.
        computed: number of computed steps.
        schedule: "best" by the calibration, or "even".
        anchors: computed steps a forecast uses, 1 or 2.
        ridge: pulls weights to 0, relative to the power of each regressor.
        seed: of the calibration's noise.
        statistics: what the calibration gave; its `save(path)` writes a file to calibrate with.

    Raises:
        ValueError: a number out of range, or an unknown schedule.
    """

    level: ClassVar[str] = "output"

    calibration: Any = None
    computed: int = 10
    schedule: str = "best"
    anchors: int = 1
    ridge: float = 1e-6
    seed: int = 11
    statistics: Statistics | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_whole(self, computed=1, anchors=1, seed=0)
        check_most(self, anchors=2)
        check_word(self, schedule=SCHEDULES)
        if not 0 <= self.ridge <= 1:
            raise ValueError(f"ridge must be a number from 0 to 1, got {self.ridge!r}")

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> Innovation:
        """The defaults, changed by `options`."""
        return cls(**options)

    @property
    def order(self) -> int:
        """Anchors used, less one."""
        return self.anchors - 1

    @property
    def evaluations(self) -> int | None:
        """Network calls of a run the statistics are for."""
        return None if self.statistics is None else self.statistics.steps

    def calibrated(self, pipe: Any) -> Innovation:
        """With its statistics: made from runs of the pipeline, or loaded and checked.

        Raises:
            ValueError: no calibration, statistics of another pipeline, a pipeline with two denoisers, or a network
                whose output has another shape than its sample.
            FileNotFoundError: there is no such file.
        """
        from diffaccel.innovation import SUFFIX, Statistics, check_computed
        from diffaccel.pair_tape import check, learn

        source = self.statistics if self.calibration is None else self.calibration
        if source is None:
            raise ValueError(
                "Innovation learns from the pipeline: give calibration=observations (prompts for pictures)"
            )
        if isinstance(source, Path) and source.suffix != SUFFIX:
            raise ValueError(f"statistics are in a file that ends in {SUFFIX}, got {source}")
        file = source if isinstance(source, str | Path) and Path(source).suffix == SUFFIX else None
        found = source if file is None else Statistics.load(file)
        if isinstance(found, Statistics):
            check(found, pipe)
            check_computed(self.computed, found.steps)
        else:
            found = learn(pipe, found, self.computed, self.seed)
        # With its calibration the method is saved: a file, or what is in none and cannot be.
        return replace(self, calibration=found if file is None else file, statistics=found)

    def for_network(self, name: str) -> Innovation:
        """The same: this method is for pipelines with one denoiser."""
        return self

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """One row. Raises ValueError without statistics, or if they are for another number of steps."""
        from diffaccel.innovation import best_plan
        from diffaccel.methods.bac import evenly_spaced

        if self.statistics is None:
            raise ValueError("Innovation has no statistics yet: accelerate_pipeline(pipe, ...) makes them")
        if self.statistics.steps != steps:
            raise ValueError(
                f"this pipeline was calibrated for {self.statistics.steps} steps, this run has {steps}: call it with "
                f"num_inference_steps={self.statistics.steps}, or calibrate it for {steps}"
            )
        if self.schedule == "even":
            return Plan.at(evenly_spaced(self.computed, steps), steps)
        return Plan.at(best_plan(self.statistics, self.computed, self.ridge), steps)

    def forecaster(self, site: Site, steps: int) -> Forecaster:
        """Only how many anchors are kept; the weights are those of `diffaccel.innovation`."""
        return Hold(self.order)
