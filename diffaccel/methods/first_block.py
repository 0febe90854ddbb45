"""First-block caching: if the first block's work hardly changed, so did that of all others, which are then skipped.

From ParaAttention (chengzeyi/ParaAttention), after TeaCache, arXiv 2411.19108; `FirstBlockCacheConfig` of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffaccel.forecast import Forecaster, Hold, Taylor
from diffaccel.methods.checks import check_whole
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.sites import Site


class NotPlannedError(ValueError):
    """There is no plan before the run, because the method decides while it runs."""


@dataclass(frozen=True)
class FirstBlock:
    """Compute the first block at every step, and the others only where its residual changed.

    What the first block adds to its input is compared with what it added at the last computed step. If the mean
    absolute change, relative to the mean absolute value, is at most `threshold`, the other blocks are skipped, and what
    they added to the first block's output at the last computed step is added again.

    Which steps are computed is known after the run. Every sample and every guidance branch decides for itself, so a
    sample's result does not depend on its batch mates; blocks are skipped when all samples of a call want that.
    Deciding waits for a GPU once a call. Differs from diffusers at batches above 1, where one decision holds for all.

    `order=1` is not in the original, and the better one where it was measured: on the bundled flux-digits at 28 steps
    and one threshold, 50.7 dB to 41.6 with 13 computed steps, 40.3 to 34.7 with 8 (`benchmarks/first_block.json`).
    There TaylorSeer, which runs no block on skipped steps, is ahead of both: 52.6 dB with 11 computed steps.

    Attributes:
        threshold: change up to which a step is skipped; infinity skips whatever the other options allow.
        warmup: computed steps before the first skipped one.
        order: of the forecast of what the other blocks add: 0 is plain reuse, 1 the line through the last two values.
        max_skipped: most steps skipped in a row; None for any number.
        warmup_interval: of the first `warmup` steps, every so many-th is computed in any case.
        schedule: a plan whose computed steps are computed in any case.

    Raises:
        ValueError: a number out of range, or a schedule with more rows than one.
    """

    threshold: float = 0.05
    warmup: int = 1
    order: int = 0
    max_skipped: int | None = None
    warmup_interval: int = 1
    schedule: Plan | None = None

    def __post_init__(self) -> None:
        check_whole(self, warmup=1, order=0, warmup_interval=1)
        if self.max_skipped is not None:
            check_whole(self, max_skipped=0)
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float) or not self.threshold >= 0:
            raise ValueError(f"threshold must be a number of at least 0, such as 0.05, got {self.threshold!r}")
        if self.schedule is not None and (not isinstance(self.schedule, Plan) or len(self.schedule.rows) > 1):
            raise ValueError(f"schedule must be a diffaccel.plan.Plan of one row, got {self.schedule!r}")

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> FirstBlock:
        """The defaults, changed by `options`."""
        return cls(**options)

    @property
    def level(self) -> str:
        """What is forecast ends with the last block."""
        return "model"

    def due(self, step: int, skipped: int) -> bool:
        """Whether a step is computed in any case, after so many skipped ones in a row."""
        return (
            step == 0
            or (step < self.warmup and step % self.warmup_interval == 0)
            or (self.schedule is not None and self.schedule.computes(0, step))
            or (self.max_skipped is not None and skipped >= self.max_skipped)
        )

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """The plan of an infinite threshold, which asks for no decision.

        Raises:
            NotPlannedError: the steps depend on the pictures.
        """
        if self.threshold < math.inf:
            raise NotPlannedError(
                "first_block decides while it runs which steps are computed, so there is no plan before the run; after "
                "it, pipe.acceleration.plan is what was computed. For a plan known beforehand take method='taylorseer'"
            )
        computed: list[int] = []
        for step in range(steps):
            if self.due(step, skipped=step - computed[-1] - 1 if computed else 0):
                computed.append(step)
        return Plan.at(computed, steps)

    def forecaster(self, site: Site, steps: int) -> Forecaster:
        """The rule by which what the other blocks add is forecast."""
        return Taylor(self.order) if self.order else Hold()
