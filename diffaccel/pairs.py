"""Outputs and samples in pairs: recorded over uncached runs, and forecast from each other in accelerated ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from diffaccel.block_schedules import check_single, scheduler_name
from diffaccel.calibration_runs import default_steps, runs
from diffaccel.clock import Clock, Moment
from diffaccel.compiled import check_recordable, is_compiled
from diffaccel.denoisers import clocks
from diffaccel.feature import Feature
from diffaccel.innovation import Regression, Statistics, moments, regression
from diffaccel.methods import Method
from diffaccel.methods.innovation import Innovation
from diffaccel.query_clock import QueryClock
from diffaccel.response import responses
from diffaccel.session import Key, Session
from diffaccel.sites import OUTPUT, Site, called_twice, sites
from diffaccel.structure import unwrapped
from diffaccel.watch import Watch

BATCH = 16
"""Samples of a run from which statistics are made."""


class PairSession(Session):
    """The state of one network accelerated by an `Innovation`. Anchors are pairs of output and sample.

    Raises:
        ValueError: as `Session`, or the network is compiled as a whole, or has more than one output.
    """

    def __init__(self, network: nn.Module, method: Method, clock: Clock) -> None:
        self.innovation = cast(Innovation, method)
        self._sample = torch.empty(0)
        self._regressions: dict[tuple[tuple[int, ...], int], Regression] = {}
        super().__init__(network, method, clock)

    def find(self) -> list[Site]:
        """The one output."""
        check_single_output(self.network)
        return super().find()

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins: note the sample."""
        self._sample = sample_of(args, kwargs)
        super().enter(moment, args, kwargs)

    def _keep(self, key: Key, step: int, feature: Feature) -> None:
        check_shapes(self.network, feature.leaves[0], self._sample)
        super()._keep(key, step, Feature((feature.leaves[0], self._sample)))

    def _forecast(self, key: Key, step: int) -> Tensor:
        """What the network would return at `step`."""
        i, branch, _ = key
        anchors = self._anchors[key]
        times = tuple(time for time, _ in anchors)
        if (times, step) not in self._regressions:
            statistics = self.innovation.statistics
            assert statistics is not None
            self._regressions[times, step] = regression(statistics.gram, times, step, self.innovation.ridge)
        w = self._regressions[times, step]
        self._skipped[i, branch] += 1
        wide = torch.promote_types(self._sample.dtype, torch.float32)
        total = self._sample.to(wide) * w.now
        for (_, pair), output, sample in zip(anchors, w.outputs, w.samples, strict=True):
            total.add_(pair.leaves[0], alpha=output).add_(pair.leaves[1], alpha=sample)
        return total.to(anchors[0][1].leaves[0].dtype)


class PairTape(Watch):
    """Outputs and samples of the run in progress, by branch of guidance."""

    def __init__(self, network: nn.Module, clock: Clock) -> None:
        super().__init__(network, clock)
        self.pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._sample = torch.empty(0)
        self._run = -1

    def find(self) -> list[Site]:
        """The one output."""
        check_recordable(self.network)
        check_single_output(self.network)
        return sites(self.network, OUTPUT)

    def forget(self) -> None:
        """Drop what was kept."""
        self.pairs = {}

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins: note the sample."""
        if moment.run != self._run:
            self.forget()
            self._run = moment.run
        self._sample = sample_of(args, kwargs)

    def leave(self, moment: Moment) -> None:
        """A call of the network ends well."""

    def at_site(self, i: int, real: Callable[..., Any]) -> Callable[..., Any]:
        """The output as it is, kept with the sample."""

        def call(*args: Any, **kwargs: Any) -> Any:
            output = real(*args, **kwargs)
            if (moment := self._moment) is not None:
                check_shapes(self.network, output, self._sample)
                kept = self.pairs.setdefault(moment.branch, [])
                if len(kept) > moment.step:
                    raise called_twice(self.network, self.sites[i], OUTPUT)
                kept.append((output.detach(), self._sample.detach()))
            return output

        return call


def learn(pipe: Any, source: Any, computed: int, seed: int, progress: bool = True) -> Statistics:
    """Statistics of uncached runs over observations or prompts; the pipeline is left as it was.

    Raises:
        ValueError: a pipeline with two denoisers, or whose network's output has not the shape of its sample; more
            computed steps than a run has; nothing to learn from.
    """
    ((name, network),) = check_single(pipe).items()
    if (steps := default_steps(pipe)) is not None and computed > steps:
        raise ValueError(f"computed={computed} is more than the {steps} network calls of a run: choose fewer")
    todo, clock = runs(pipe, source, BATCH, seed), clocks(pipe)[name]
    if isinstance(clock, QueryClock):
        raise ValueError(
            f"Innovation needs to know what the scheduler of {type(pipe).__name__} makes of an output, and that runs "
            "a loop of its own: put network, scheduler and normalizer into a PolicyPipeline, or use method='bac'"
        )
    total, samples, tape = np.zeros(()), 0, PairTape(network, clock)
    try:
        tape.attach()
        for run in tqdm(todo, desc="recording", unit="run", disable=not progress or len(todo) == 1):
            run.make()
            for pairs in tape.pairs.values():
                outputs, seen = (torch.stack(part) for part in zip(*pairs, strict=True))
                total, samples = total + run.samples * moments(outputs, seen), samples + run.samples
    finally:
        tape.detach()
        clock.detach()
    answers = tuple(responses(pipe.scheduler, answered=True))
    return Statistics(total / samples, answers, type(network).__name__, scheduler_name(pipe), samples)


def check(statistics: Statistics, pipe: Any) -> None:
    """Raise ValueError unless statistics are of a pipeline."""
    (network,) = check_single(pipe).values()
    statistics.check(type(network).__name__, scheduler_name(pipe), default_steps(pipe))


def check_single_output(network: nn.Module) -> None:
    """Raise ValueError if a network is compiled as a whole, or has more than one output."""
    kind = type(unwrapped(network)).__name__
    if is_compiled(network):
        raise ValueError(f"this {kind} is compiled as a whole: accelerate it uncompiled, or use method='taylorseer'")
    if len(sites(network, OUTPUT)) > 1:
        raise ValueError(f"{kind} has more than one output: method='innovation' is for networks with one")


def check_shapes(network: nn.Module, output: Tensor, sample: Tensor) -> None:
    """Raise ValueError if a network's output has another shape than its sample."""
    if output.shape != sample.shape:
        raise ValueError(
            f"{type(unwrapped(network)).__name__} returns {tuple(output.shape)} for a sample of {tuple(sample.shape)}: "
            "method='innovation' is for networks whose output has the shape of their sample; use method='fitted'"
        )


def sample_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The sample a network is asked about: its first argument."""
    found: Tensor = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return found
