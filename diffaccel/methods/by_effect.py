"""Schedules by what reuse does to a policy's actions, as a method. Not from a paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffaccel.methods.blockwise import UPDATES, Scheduled
from diffaccel.methods.checks import check_most, check_whole

if TYPE_CHECKING:
    from diffaccel.schedule_file import BlockSchedules


@dataclass(frozen=True)
class Effect(Scheduled):
    """Compute where reuse would move the actions most (`diffaccel.effects`), for a `PolicyPipeline`.

    Attributes:
        calibration: observations, a dozen or more of different phases; or schedules, or a file of them.
        updates: computed steps, step 0 counted: of all blocks, or of all on average.
        common: one schedule for all blocks, so that nothing of the layers runs in between; else each block has its own
            and they share one budget, counted in multiplications.
        order: 0 reuses outputs, 1 forecasts along a line.
        probes: random directions of the action for each observation.
        seed: of the calibration's noise and directions.
        always_update_last: compute all branches in the last step, too.
        schedules: what the calibration gave.

    Raises:
        ValueError: a number out of range.
    """

    calibration: Any = None
    updates: int = UPDATES
    common: bool = True
    order: int = 0
    probes: int = 2
    seed: int = 11
    always_update_last: bool = False
    schedules: BlockSchedules | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_whole(self, updates=1, order=0, probes=1, seed=0)
        check_most(self, order=1)

    def made(self, pipe: Any) -> BlockSchedules:
        """Effects are measured, then schedules chosen.

        Raises:
            TypeError: the pipeline is no `PolicyPipeline`: gradients have to flow through its sampling loop.
        """
        from diffaccel.block_schedules import written
        from diffaccel.calibration_runs import stacked
        from diffaccel.effects import measure
        from diffaccel.methods.effect import common_schedule, effect_schedules
        from diffaccel.pipelines.policy import PolicyPipeline

        if not isinstance(pipe, PolicyPipeline):
            raise TypeError(
                f"method='effect' differentiates the sampling loop, and that of {type(pipe).__name__} is not ours: put "
                "network, scheduler and normalizer into a PolicyPipeline, or use method='bac'"
            )
        observations = stacked(self.calibration)
        if not len(observations):
            raise ValueError("calibration is empty: give at least one observation")
        effects = measure(pipe, observations, self.probes, self.seed)
        if self.common:
            rows = dict.fromkeys(effects.names, common_schedule(effects, self.updates))
        else:
            rows = effect_schedules(effects, self.updates)
        return written(self, pipe, rows, effects.steps)
