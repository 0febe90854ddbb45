"""A session: one accelerated network. Attaches sites, keeps anchors, forecasts, reports, detaches without a trace."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diffaccel.clock import Clock, Moment
from diffaccel.compiled import Slots, check_not_compiled_since, check_outside_compiled, is_compiled
from diffaccel.dimensions import ByDimension
from diffaccel.feature import Feature, forecast, stand_in, storage_bytes
from diffaccel.forecast import Forecaster
from diffaccel.methods import Method, written_out
from diffaccel.plan import Plan
from diffaccel.report import Report, SiteReport
from diffaccel.sites import Site, called_more, check_last, check_reached, say_unused, sites
from diffaccel.timing import Stopwatch
from diffaccel.watch import Watch

logger = logging.getLogger("diffaccel")

Anchors = deque[tuple[int, Feature]]  # (step, feature), newest first
Key = tuple[int, str, int]  # site, branch, and which of its calls in a step: some networks run a block repeatedly

_TELLING = (Tensor, str, bool, type(None))  # arguments that tell calls of different kinds apart


class Session(Watch):
    """The state of one network accelerated by `method`. Other arguments, and what is refused, are those of `Watch`."""

    def __init__(self, network: nn.Module, method: Method, clock: Clock) -> None:
        self.method = method
        super().__init__(network, clock)
        self.slots = Slots() if is_compiled(network) else None
        self.forecasters: list[Forecaster | ByDimension] = []  # by site, of the run in progress
        self.plan: Plan | None = None
        self._run = -1
        self._first: dict[str, int] = {}  # by branch, the step at which its history begins
        self._computing: list[bool] = []  # by site, for the call in progress
        self._calls: Counter[int | str] = Counter()  # by site or idle module, in the call of the network in progress
        self._late: str | None = None  # the idle module that ran last, if no site ran after it
        self._anchors: dict[Key, Anchors] = {}
        self._stand_ins: dict[tuple[str, str, int], Any] = {}  # as anchors are, by name of the idle module
        self._kinds: dict[str, list[Any]] = {}  # of the call, by branch: shapes of its tensors, flags
        self._computed: Counter[tuple[int, str]] = Counter()
        self._skipped: Counter[tuple[int, str]] = Counter()
        self._weights: dict[tuple[int, tuple[int, ...], int], Any] = {}  # by site, anchor times and time
        self._steps, self._memory, self._said_unused = 0, 0, False
        self._stopwatch = Stopwatch()

    def find(self) -> list[Site]:
        """The sites at the level of the method."""
        found = sites(self.network, self.method.level)
        check_outside_compiled(self.network, found, self.method.level)
        return found

    def attach(self) -> None:
        """Put sites, idle modules and hooks in place."""
        super().attach()
        self.clock.finished.append(self.forget)

    def forget(self) -> None:
        """Drop all anchors; what was counted and measured stays."""
        self._memory = max(self._memory, self._held())
        self._anchors, self._stand_ins, self._kinds, self._first = {}, {}, {}, {}
        if self.slots is not None:
            self.slots.stand_ins.clear()

    def in_use(self) -> str:
        """Which method the network is accelerated by, and how to take it off."""
        return (
            f"this {type(self.network).__name__} is already accelerated by {written_out(self.method)}: "
            "call remove() on that acceleration first (pipe.acceleration.remove())"
        )

    def report(self) -> Report:
        """What was computed and skipped in the last run, or so far in this one."""
        return Report(
            network=type(self.network).__name__,
            method=written_out(self.method),
            plan=self.plan,
            steps=self._steps,
            sites=[
                SiteReport(site.name, _by_branch(self._computed, i), _by_branch(self._skipped, i))
                for i, site in enumerate(self.sites)
            ],
            bound=1.0 if self.plan is None else self.plan.bound,
            seconds=self._stopwatch.seconds(),
            memory=max(self._memory, self._held()),
        )

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins: decide which sites compute."""
        if self.slots is None:
            check_not_compiled_since(self.network)
        if moment.run != self._run:
            self._begin(moment)
        self._steps = max(self._steps, moment.step + 1)
        # Anchors of another kind of call are of no use: guidance or control switched on or off, another number of
        # tokens, keys and values gathered in one step and used in the next.
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        kind = [leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves if isinstance(leaf, _TELLING)]
        if self._kinds.get(moment.branch) != kind:
            self._anchors = {key: kept for key, kept in self._anchors.items() if key[1] != moment.branch}
            self._kinds[moment.branch], self._first[moment.branch] = kind, moment.step
        self._computing = [self._computes(i, moment) for i in range(len(self.sites))]
        self._calls.clear()
        self._late = None
        if self.slots is not None:
            self.slots.fill(
                self._computing, moment.branch, lambda i: self._forecast((i, moment.branch, 0), moment.step)
            )
        self._stopwatch.start(tensors[0].device if tensors else torch.device("cpu"))

    def _computes(self, i: int, moment: Moment) -> bool:
        """Whether site `i` computes in this call: by the plan, or because there is nothing to forecast it from.

        A history that begins in mid-run begins with the plan's warm-up, too: the second network of Wan 2.2, guidance
        that is switched on, another number of tokens.
        """
        assert self.plan is not None
        age = moment.step - self._first[moment.branch]
        return self.plan.computes(i, moment.step) or all(self.plan.computes(i, s) for s in range(age + 1))

    def _begin(self, moment: Moment) -> None:
        """A run begins, whatever became of the last one."""
        self.forget()
        if self.refresh():
            self.forecasters = []
        self._run, self._memory = moment.run, 0
        self._computed.clear()
        self._skipped.clear()
        self._stopwatch.reset()
        self._steps = 0
        self.plan, self.forecasters = self._prepared(moment.steps)
        if all(all(row) for row in self.plan.rows):
            logger.warning(
                "nothing is skipped: %s computes all %d steps of this run", written_out(self.method), moment.steps
            )

    def _prepared(self, steps: int) -> tuple[Plan, list[Forecaster | ByDimension]]:
        """Plan and forecasters of a run of so many steps; those of the last run if it had as many."""
        if self.forecasters and self.plan is not None and self.plan.steps == steps:
            return self.plan, self.forecasters
        self.forecasters = []
        self._weights.clear()
        plan = self.method.plan(self.sites, steps)
        plan.check(steps, self.sites)
        return plan, [self.method.forecaster(site, steps) for site in self.sites]

    def leave(self, moment: Moment) -> None:
        """A call of the network ends well."""
        if self.slots is not None:
            for i, output in self.slots.collect(moment.branch).items():
                self._keep((i, moment.branch, 0), moment.step, Feature(output))
        computing = set(self._computing)
        self._stopwatch.stop("mixed" if len(computing) > 1 else "computed" if True in computing else "skipped")
        if moment.step == self._first[moment.branch]:
            missed = [site for i, site in enumerate(self.sites) if (i, moment.branch, 0) not in self._anchors]
            if len(missed) == len(self.sites):
                check_reached(self.network, missed, len(self.sites), self.method.level)
            elif missed and not self._said_unused:
                say_unused(self.network, missed, len(self.sites))
                self._said_unused = True
            check_last(self.network, self._late, self.method.level)

    def at_site(self, i: int, real: Callable[..., Any]) -> Callable[..., Any]:
        """Site `i` as it is installed: compute and keep, or forecast."""
        if self.slots is not None:
            return self.slots.at_site(i, real)

        def call(*args: Any, **kwargs: Any) -> Any:
            moment = self._moment
            if moment is None:
                return real(*args, **kwargs)
            key = (i, moment.branch, self._calls[i])
            self._calls[i] += 1
            if not self._computing[i]:
                return self._forecast(key, moment.step)
            output = real(*args, **kwargs)
            self._late = None
            self._keep(key, moment.step, Feature(output))
            return output

        return call

    def _forecast(self, key: Key, step: int) -> Any:
        """What the site would return at `step`."""
        i, branch, call = key
        if key not in self._anchors:
            raise called_more(self.network, self.sites[i], self.method.level)
        if call == 0:
            self._skipped[i, branch] += 1
        anchors = self._anchors[key]
        return forecast([feature for _, feature in anchors], self._weights_of(i, anchors, step))

    def _weights_of(self, i: int, anchors: Anchors, step: int) -> Any:
        """The weights of a forecast at site `i`, worked out once for all runs of this many steps."""
        key = (i, tuple(step for step, _ in anchors), step)
        if key not in self._weights:
            forecaster, times = self.forecasters[i], [float(time) for time in key[1]]
            if isinstance(forecaster, ByDimension):
                device = anchors[0][1].tensors[0].device
                self._weights[key] = forecaster.weights(times, float(step), device)
            else:
                self._weights[key] = tuple(float(w) for w in forecaster.weights(times, float(step)))
        return self._weights[key]

    def _keep(self, key: Key, step: int, feature: Feature) -> None:
        """`feature` becomes the newest anchor; at most `order + 1` are kept."""
        if key[2] == 0:
            self._computed[key[:2]] += 1
        anchors = self._anchors.setdefault(key, deque(maxlen=self.forecasters[key[0]].order + 1))
        if anchors and not anchors[0][1].like(feature):
            anchors.clear()
        anchors.appendleft((step, feature))

    def at_idle(self, i: int, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """A module that runs only when site `i` computes, and else returns a stand-in of the shape it last had."""
        if self.slots is not None:
            return self.slots.at_idle(i, name, real)

        def call(*args: Any, **kwargs: Any) -> Any:
            moment = self._moment
            if moment is None:
                return real(*args, **kwargs)
            key = (name, moment.branch, self._calls[name])
            self._calls[name] += 1
            if self._computing[i] or key not in self._stand_ins:
                output = real(*args, **kwargs)
                self._late, self._stand_ins[key] = name, stand_in(output, self._stand_ins.get(key))
                return output
            return self._stand_ins[key]

        return call

    def _held(self) -> int:
        return storage_bytes([feature for anchors in self._anchors.values() for _, feature in anchors])


def _by_branch(counts: Counter[tuple[int, str]], site: int) -> dict[str, int]:
    return {branch: count for (i, branch), count in counts.items() if i == site}
