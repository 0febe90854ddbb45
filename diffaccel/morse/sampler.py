"""The session of Morse: one network that runs itself at Dash steps, and its Dot at all others."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from diffaccel.clock import Clock, Moment, PipelineClock
from diffaccel.compiled import check_not_compiled_since, is_compiled
from diffaccel.methods import Method, written_out
from diffaccel.methods.morse import Morse
from diffaccel.morse.coordinates import Coordinates
from diffaccel.morse.guidance import Guidance
from diffaccel.morse.pairs import Pair
from diffaccel.morse.probe import Call, taken_apart
from diffaccel.morse.report import MorseReport
from diffaccel.morse.schedulers import check_scheduler
from diffaccel.morse.trajectory import (
    ASIDE,
    FIRST,
    GAP,
    GUIDANCE,
    Conditioning,
    DashStep,
    beside,
    form_of,
    times_of,
)
from diffaccel.plan import Plan
from diffaccel.sites import Site
from diffaccel.timing import Stopwatch
from diffaccel.watch import Watch

logger = logging.getLogger("diffaccel")


class MorseSession(Watch):
    """The state of one network accelerated by a `Morse`. Other arguments, and what is refused, are those of `Watch`.

    Attributes:
        teacher: if set, Dash runs at every Dot step, too, and this is given both their words; what a run returns is
            what it would be without.
    """

    def __init__(self, network: nn.Module, method: Method, clock: Clock) -> None:
        self.method = method
        self.morse = cast(Morse, method)
        super().__init__(network, clock)
        self.dot = self.morse.ready
        self.teacher: Callable[[Pair], None] | None = None
        self.plan: Plan | None = None
        self._compiled = is_compiled(network)
        self._guidance = Guidance(self.morse.guided)
        self._scheduler: Any = None
        self._coordinates: Coordinates
        self._run = -1
        self._last: dict[str, DashStep] = {}  # by branch
        self._counts: Counter[tuple[str, bool]] = Counter()  # by branch, whether Dash ran
        self._forced: Counter[str] = Counter()
        self._steps, self._memory = 0, 0
        self._stopwatch = Stopwatch()

    def find(self) -> list[Site]:
        """The network as a whole."""
        return [Site("network", self.network)]

    def attach(self) -> None:
        """Put the one wrapper in place."""
        super().attach()
        self.clock.finished.append(self._finish)

    def forget(self) -> None:
        """Drop what Dash said; what was counted and measured stays."""
        self._memory = max(self._memory, self._held())
        self._last = {}

    def in_use(self) -> str:
        """Which method the network is accelerated by, and how to take it off."""
        return (
            f"this {type(self.network).__name__} is already accelerated by {written_out(self.method)}: "
            "call remove() on that acceleration first (pipe.acceleration.remove())"
        )

    def report(self) -> MorseReport:
        """What Dash and Dot ran in the last run, or so far in this one."""
        return MorseReport.of(
            self.network,
            self.morse,
            self.plan,
            self._steps,
            self._counts,
            self._forced,
            self._stopwatch.seconds(),
            max(self._memory, self._held()),
        )

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins."""
        if not self._compiled:
            check_not_compiled_since(self.network)
        if moment.run != self._run:
            self._begin(moment)
        self._steps = max(self._steps, moment.step + 1)

    def leave(self, moment: Moment) -> None:
        """A call of the network ends well."""

    def at_site(self, i: int, real: Callable[..., Any]) -> Callable[..., Any]:
        """The network's call as it is installed: Dash, or Dot."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._patches:  # taken off, and kept by somebody who wrapped it
                return real(*args, **kwargs)
            self._before(self.network, args, kwargs)
            moment = self._moment
            output = real(*args, **kwargs) if moment is None else self._answer(moment, real, args, kwargs)
            self._after(self.network, args, output)
            return output

        return call

    def _listen(self) -> None:
        """The wrapper hears of every call itself."""

    def _begin(self, moment: Moment) -> None:
        """A run begins, whatever became of the last one."""
        self.forget()
        self._memory, self._steps = 0, 0
        self._counts.clear()
        self._forced.clear()
        self._stopwatch.reset()
        self._meet(cast(PipelineClock, self.clock))
        if self.plan is None or self.plan.steps != moment.steps:
            self.plan = None
            self.plan = self.morse.plan(self.sites, moment.steps)
        self._run = moment.run
        if all(self.plan.rows[0]):
            logger.warning(
                "nothing is skipped: %s runs Dash at all %d steps of this run", written_out(self.method), moment.steps
            )

    def _meet(self, clock: PipelineClock) -> None:
        """Check the scheduler of a run, which may be swapped for another at any time, and its guidance."""
        scheduler = getattr(clock.pipe, clock.name)
        if scheduler is not self._scheduler:
            check_scheduler(scheduler, self.dot.config.residual_space)
            self._coordinates = Coordinates.of(scheduler, self.dot.config.residual_space)
            self._scheduler = scheduler
        self._guidance.check(clock.pipe)

    def _answer(self, moment: Moment, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the network returns at a moment."""
        call = taken_apart(self._arguments, args, kwargs)
        if call.conditioning.get(ASIDE) is not None:
            return real(*args, **kwargs)
        assert self.plan is not None
        last, reason = self._last.get(moment.branch), None
        dash = self.plan.computes(0, moment.step)
        if not dash:
            reason = self._reason(call, last)
        self._stopwatch.start(call.sample.device)
        if last is None or dash or reason is not None:
            output = real(*args, **kwargs)
            self._stopwatch.stop("computed")
            self._keep(moment, call, output)
        else:
            output = self._answer_of_dot(moment.step, call, last, partial(real, *args, **kwargs))
        self._counts[moment.branch, dash or reason is not None] += 1
        if reason is not None:
            self._forced[reason] += 1
        return output

    def _reason(self, call: Call, last: DashStep | None) -> str | None:
        """Why Dash must run at a step that is planned for Dot; None if it need not."""
        if last is None:
            return FIRST if self.morse.guided is None else GUIDANCE  # which, off at the first step, is an error
        if (reason := last.against(call)) is not None:
            return reason
        return GAP if self.morse.max_gap is not None and last.gap(call) > self.morse.max_gap else None

    def _keep(self, moment: Moment, call: Call, output: Any) -> None:
        """This Dash step becomes the last one of its branch."""
        last = self._last.get(moment.branch)
        if (last is None or last.size != len(call.sample)) and not self._guidance.holds(call):
            if moment.step == 0:
                raise ValueError(
                    "guided= is for pipelines that run both branches of guidance as halves of one batch, and with "
                    "guidance on: leave it out, and take a Dot that was not trained guided"
                )
            self._last.pop(moment.branch, None)
            return
        z, make = form_of(output, call.sample)
        z, asked = self._guidance.combined(z), self._guidance.asked(call)
        t = times_of(asked)
        step = DashStep(
            step=moment.step,
            x=asked.sample.clone(),  # some loops write into theirs, and compiled networks into their outputs
            t=t,
            k=self._coordinates.keep(z, beside(asked.sample, z), t).clone(),
            time=call.time,
            size=len(call.sample),
            conditioning=Conditioning(call.conditioning),
            output=make,
        )
        follows = self.dot.config.base == "taylor" and last is not None and last.against(call) is None
        self._last[moment.branch] = step.after(last if follows else None)

    def _answer_of_dot(self, step: int, call: Call, last: DashStep, dash: Callable[[], Any]) -> Any:
        """What Dot makes of the last Dash step."""
        asked = self._guidance.asked(call)
        x, t, base = asked.sample, times_of(asked), last.base(step, self.dot.config.base)
        said = self.dot(x, t, last.x, last.k, last.t, asked.conditioning)
        if said.shape != base.shape:
            raise ValueError(f"Dot returned {tuple(said.shape)} for an estimate of {tuple(base.shape)}")
        # z = z_ts + eta(x_ts, x_ti, z_ts, t_s, t_i), in the coordinates it is kept in
        z = self._coordinates.output(base + said.to(base.dtype), beside(x, base), t)
        output = last.output(self._guidance.returned(z))
        self._stopwatch.stop("skipped")
        if self.teacher is not None:
            with torch.no_grad():
                z = self._guidance.combined(form_of(dash(), call.sample)[0])
                k = self._coordinates.keep(z, beside(x, z), t)
                self.teacher(Pair(x.clone(), t, last.x, last.k, last.t, base, k, asked.conditioning))
        return output

    def _finish(self) -> None:
        """The last step of a run is done."""
        if (
            self.plan is not None
            and not all(self.plan.rows[0])
            and not any(n for (_, dash), n in self._counts.items() if not dash)
        ):
            reasons = ", ".join(f"{reason} ({count})" for reason, count in self._forced.items())
            logger.warning("nothing was accelerated: Dash ran at every step of this run. Of those for Dot: %s", reasons)
        self.forget()

    def _held(self) -> int:
        return sum(step.bytes for step in self._last.values())
