"""Block-wise caching: every residual branch has a schedule of its own, and what it added last is added again between.

BAC (arXiv 2506.13456) and what its paper compares it with. The rules are pure functions in `diffaccel.methods.bac`,
here they become methods. Of each there is an order 1, which is not from the paper: branches are forecast along the line
through their last two outputs (TaylorSeer's) instead of reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from diffaccel.forecast import Forecaster, Hold, Taylor
from diffaccel.methods.checks import check_most, check_whole, check_word
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.schedule_file import BlockSchedules
    from diffaccel.sites import Site
    from diffaccel.tape import Learnt

UPDATES = 10
"""Default number of updates: the paper's for 100 calls."""
METRICS = ("cosine", "l1", "l2", "mse", "wasserstein")
OBJECTIVES = ("anchor", "adjacent")
# Options that make schedules; the others say what is done with them.
_MADE_BY = ("updates", "metric", "objective", "bubbling", "seed", "common", "probes")


class _Branches:
    """What all methods here share: the level, and the forecast."""

    level: ClassVar[str] = "branch"
    order: int

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> Self:
        """The defaults, changed by `options`."""
        return cls(**options)

    def forecaster(self, site: Site, steps: int) -> Forecaster:
        """Reuse, or a straight line."""
        return Taylor(1) if self.order else Hold()


@dataclass(frozen=True)
class Uniform(_Branches):
    """All branches at the same evenly spaced steps: the baseline that needs no calibration.

    Attributes:
        updates: computed steps, at floor(i steps / updates).
        every: compute every so many steps instead.
        order: 0 reuses outputs, 1 forecasts along a line.

    Raises:
        ValueError: a number out of range, or both `updates` and `every`.
    """

    updates: int | None = None
    every: int | None = None
    order: int = 0

    def __post_init__(self) -> None:
        check_whole(self, order=0, **{name: 1 for name in ("updates", "every") if getattr(self, name) is not None})
        check_most(self, order=1)
        if self.updates is not None and self.every is not None:
            raise ValueError("give updates or every, not both: they say the same thing in two ways")

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """One row for all branches. Raises ValueError if a run has fewer steps than updates."""
        from diffaccel.methods.bac import evenly_spaced

        if self.every is not None:
            return Plan.at(range(0, steps, self.every), steps)
        return Plan.at(evenly_spaced(UPDATES if self.updates is None else self.updates, steps), steps)


class Scheduled(_Branches):
    """What methods share whose schedules are made from a calibration. Subclasses say how, by `made`."""

    calibration: Any
    schedules: BlockSchedules | None
    always_update_last: bool

    def calibrated(self, pipe: Any) -> Self:
        """With its schedules: made from runs of the pipeline, or given and checked.

        Raises:
            ValueError: no calibration, or schedules of another network, scheduler or length.
            FileNotFoundError: there is no such file.
        """
        from diffaccel.block_schedules import found

        schedules = found(self, pipe)
        # Schedules that were given say by which options they were made, so that a report does not claim others.
        made = schedules.settings if schedules.rule == type(self).__name__.lower() else {}
        own = {name: value for name, value in made.items() if name in _MADE_BY and hasattr(self, name)}
        return replace(self, calibration=None, schedules=schedules, **own)  # type: ignore[type-var]

    @property
    def evaluations(self) -> int | None:
        """Network calls of a run the schedules are for."""
        return None if self.schedules is None else self.schedules.steps

    def for_network(self, name: str) -> Self:
        """The same: these methods are for pipelines with one denoiser."""
        return self

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """One row for each branch.

        Raises:
            ValueError: there are no schedules yet, or they are for other branches or another number of steps.
        """
        from diffaccel.block_schedules import planned

        return planned(self, [site.name for site in sites], steps)

    def made(self, pipe: Any) -> BlockSchedules:
        """The schedules that the calibration gives."""
        raise NotImplementedError


@dataclass(frozen=True)
class Acs(Scheduled):
    """The adaptive caching scheduler: each branch at the steps where its output changes, without the union.

    Attributes:
        calibration: observations (one, or up to 16 of different phases); prompts, for a pipeline that draws pictures;
            or schedules, or a file of them that `schedules.save(path)` wrote.
        updates: computed steps of each branch, step 0 counted.
        metric: of how alike outputs are: "cosine", "l1", "l2", "mse" or "wasserstein".
        objective: "anchor" as released, "adjacent" as printed.
        order: 0 reuses outputs, 1 forecasts along a line.
        seed: of the calibration's noise.
        always_update_last: compute all branches in the last step, too, as the released code comes to do at 100 steps.
        schedules: what the calibration gave.

    Raises:
        ValueError: a number out of range, or an unknown word.
    """

    calibration: Any = None
    updates: int = UPDATES
    metric: str = "cosine"
    objective: str = "anchor"
    order: int = 0
    seed: int = 11
    always_update_last: bool = False
    schedules: BlockSchedules | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_whole(self, updates=1, order=0, seed=0)
        check_most(self, order=1)
        check_word(self, metric=METRICS, objective=OBJECTIVES)

    def made(self, pipe: Any) -> BlockSchedules:
        """One recording of uncached runs, one schedule for each block."""
        from diffaccel.block_schedules import check_updates, written
        from diffaccel.tape import learn

        learnt = learn(pipe, self.calibration, self.metric, self.seed)
        check_updates(self.updates, learnt.steps)  # policies of other projects do not tell it before
        return written(self, pipe, self.rows(learnt), learnt.steps, learnt.losses)

    def rows(self, learnt: Learnt) -> dict[str, list[int]]:
        """Computed steps of each block."""
        from diffaccel.methods.bac import BETTER, adaptive_schedule

        better = BETTER[self.metric]
        return {
            name: adaptive_schedule(table, self.updates, better, self.objective)  # type: ignore[arg-type]
            for name, table in learnt.similarities.items()
        }


@dataclass(frozen=True)
class Unified(Acs):
    """The adaptive caching scheduler's schedule of the first block for all of them. Attributes as of `Acs`."""

    def rows(self, learnt: Learnt) -> dict[str, list[int]]:
        """Computed steps of each block."""
        first = super().rows(learnt)[learnt.names[0]]
        return dict.fromkeys(learnt.names, first)


@dataclass(frozen=True)
class Bac(Acs):
    """Block-wise adaptive caching: `Acs`, and the blocks that move most are refreshed with every feed-forward block
    after them (bubbling union).

    Attributes:
        bubbling: how many blocks are refreshed more often, n; 0 for none. The paper takes 5 in simulation and 3 on its
            robot. Further attributes are those of `Acs`.
    """

    bubbling: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, bubbling=0)

    def rows(self, learnt: Learnt) -> dict[str, list[int]]:
        """Computed steps of each block."""
        from diffaccel.methods.bac import bubbling_union

        return bubbling_union(super().rows(learnt), learnt.losses, learnt.names, self.bubbling)
