"""What a run with a Dot did: who ran how often, why, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from torch import nn

from diffaccel.methods import written_out
from diffaccel.methods.morse import Morse
from diffaccel.morse.budget import latency_ratio, lsd
from diffaccel.plan import Plan
from diffaccel.report import Report, SiteReport


@dataclass(frozen=True)
class MorseReport(Report):
    """The last run of a network with a Dot. Calls are counted over all branches of guidance.

    Attributes:
        dash: calls that Dash ran, forced ones included.
        dot: calls that Dot ran.
        forced: calls planned for Dot that Dash ran, by reason.
        ratio: N by this run's own seconds, medians of a call of each; None if one of the two did not run.
        lsd: what the run cost by that, in latencies of a Dash step; None likewise.
        lsd_planned: what its plan costs by the N it was made with; None if it was made without one.
    """

    dash: int
    dot: int
    forced: Mapping[str, int]
    ratio: float | None
    lsd: float | None
    lsd_planned: float | None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        method: Morse,
        plan: Plan | None,
        steps: int,
        counts: Mapping[tuple[str, bool], int],
        forced: Mapping[str, int],
        seconds: Mapping[str, Sequence[float]],
        memory: int,
    ) -> MorseReport:
        """The report of a run: `counts` of calls are by branch and whether Dash ran, all else is as in the report."""
        by_kind = [{branch: n for (branch, ran), n in counts.items() if ran == dash} for dash in (True, False)]
        dash, dot = (sum(kind.values()) for kind in by_kind)
        each = [median(seconds[kind]) for kind in ("computed", "skipped") if kind in seconds]
        ratio = latency_ratio(*each) if len(each) == 2 else None
        planned = None
        if plan is not None and method.n is not None:
            k_dash = len(plan.computed())
            planned = lsd(k_dash, plan.steps - k_dash, method.n)
        return cls(
            network=type(network).__name__,
            method=written_out(method),
            plan=plan,
            steps=steps,
            sites=[SiteReport("network", *by_kind)],
            bound=1.0 if plan is None else plan.bound,
            seconds=seconds,
            memory=memory,
            dash=dash,
            dot=dot,
            forced=dict(forced),
            ratio=ratio,
            lsd=None if ratio is None else lsd(dash, dot, ratio) * steps / (dash + dot),  # calls to steps
            lsd_planned=planned,
        )

    def __str__(self) -> str:
        if self.plan is None:
            return super().__str__()
        cost = f"{self.dash} calls of Dash, {self.dot} of Dot"
        if self.ratio is not None and self.lsd is not None:
            cost += f", N = {self.ratio:.2f}: {self.lsd:.2f} LSD"
        if self.lsd_planned is not None:
            cost += f" ({self.lsd_planned:.2f} planned)"
        forced = [f"  Dash instead of Dot at {count} calls: {reason}" for reason, count in self.forced.items()]
        return "\n".join([super().__str__(), f"  {cost}", *forced])
