"""Who computes when: a printable table of booleans, one row per site, one column per denoising step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Which sites compute at which denoising step; all others are forecast.

    `rows[i][s]` is True where site `i` computes at step `s`. A single row holds for every site. Steps count from 0 in
    order of execution. The first step must be computed: there is nothing to forecast it from.

    Raises:
        ValueError: no row, rows of unequal length, no step, or a row whose first step is not computed.
    """

    rows: tuple[tuple[bool, ...], ...]

    def __post_init__(self) -> None:
        if not self.rows or not self.rows[0]:
            raise ValueError("a plan needs at least one row and one step")
        if len({len(row) for row in self.rows}) > 1:
            raise ValueError(f"all rows of a plan need one length, got {[len(row) for row in self.rows]}")
        for i, row in enumerate(self.rows):
            if not row[0]:
                raise ValueError(f"row {i} does not compute step 0, so there is nothing to forecast it from")

    @classmethod
    def at(cls, computed: Iterable[int], steps: int) -> Plan:
        """One row that computes exactly the steps listed in `computed`, out of `steps`."""
        wanted = set(computed)
        if outside := sorted(s for s in wanted if not 0 <= s < steps):
            raise ValueError(f"steps {outside} are outside a run of {steps} steps (0 to {steps - 1})")
        return cls((tuple(s in wanted for s in range(steps)),))

    @classmethod
    def every(cls, interval: int, steps: int, warmup: int = 1, last: bool = False) -> Plan:
        """The schedule of TaylorSeer's official code (Shenyi-Z/TaylorSeer, `cal_type`).

        The first `warmup` steps are computed, then every `interval`-th one counted from the last of them. Nothing
        forces the last step, which is when pictures get their detail; `last` computes it, too.
        """
        _check(interval, steps, warmup)
        # "if first_steps or cache_counter == interval - 1: full": 0..FE-1, FE-1+N, FE-1+2N, ...
        computed = {s for s in range(steps) if s < warmup or (s - warmup + 1) % interval == 0}
        return cls.at(computed | {steps - 1} if last else computed, steps)

    @classmethod
    def diffusers(cls, interval: int, steps: int, before: int = 3) -> Plan:
        """The schedule of diffusers' `TaylorSeerCacheConfig`: its `cache_interval` and `disable_cache_before_step`.

        It computes one step more than `every`: the one that follows the first skipped step.
        """
        _check(interval, steps, max(before, 1))
        return cls.at((s for s in range(steps) if s < before or (s - before - 1) % interval == 0), steps)

    @property
    def steps(self) -> int:
        """Number of denoising steps the plan covers."""
        return len(self.rows[0])

    def computes(self, site: int, step: int) -> bool:
        """Whether site number `site` computes at `step`."""
        row = self.rows[0] if len(self.rows) == 1 else self.rows[site]
        return row[step]

    def computed(self, site: int = 0) -> list[int]:
        """The steps at which `site` computes, in order."""
        return [s for s in range(self.steps) if self.computes(site, s)]

    @property
    def bound(self) -> float:
        """Speed-up no run of this plan can exceed, all sites weighed alike: cells of the table over computed ones."""
        cells = sum(len(row) for row in self.rows)
        return cells / sum(sum(row) for row in self.rows)

    def check(self, steps: int, sites: Sequence[object]) -> None:
        """Raise ValueError unless the plan fits a run of `steps` steps over `sites`."""
        if self.steps != steps:
            raise ValueError(
                f"the plan covers {self.steps} steps but this run has {steps}: build the plan for {steps} steps, "
                f"call the pipeline with num_inference_steps={self.steps}, or give an interval instead of a plan"
            )
        if len(self.rows) not in (1, len(sites)):
            raise ValueError(f"the plan has {len(self.rows)} rows for {len(sites)} sites: give one row, or one a site")

    def __str__(self) -> str:
        """One line a row, `#` where the site computes and `.` where it is forecast."""
        ruler = "".join(f"{s:<10}" for s in range(0, self.steps, 10))
        names = ["all sites"] if len(self.rows) == 1 else [f"site {i}" for i in range(len(self.rows))]
        width = max(len(name) for name in names)
        lines = [f"{'step':<{width}}  {ruler}".rstrip()]
        for name, row in zip(names, self.rows, strict=True):
            lines.append(f"{name:<{width}}  {''.join('#' if cell else '.' for cell in row)}  {sum(row)} of {len(row)}")
        return "\n".join([*lines, f"bound {self.bound:.2f}x"])


def _check(interval: int, steps: int, warmup: int) -> None:
    for name, value in (("interval", interval), ("steps", steps), ("warmup", warmup)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
