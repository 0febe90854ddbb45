"""Outputs and samples in pairs, recorded over uncached runs of a pipeline and summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffaccel.calibration_runs import runs
from diffaccel.clock import Clock, Moment
from diffaccel.compiled import check_recordable
from diffaccel.denoisers import clocks
from diffaccel.fingerprint import Fingerprint
from diffaccel.innovation import Statistics, check_computed, moments
from diffaccel.pairs import check_shapes, check_single_output, only_denoiser, sample_of
from diffaccel.pipelines.policy import PolicyPipeline
from diffaccel.response import responses
from diffaccel.sites import OUTPUT, Site, called_twice, check_reached, sites
from diffaccel.watch import Watch

BATCH = 16
"""Samples of a policy's run from which statistics are made; pictures are drawn one by one."""


class PairTape(Watch):
    """Outputs and samples of the run in progress, by branch of guidance and step.

    Args:
        network: the denoiser.
        clock: of its pipeline.
        computed: number of steps that are to be computed later.
    """

    def __init__(self, network: nn.Module, clock: Clock, computed: int) -> None:
        super().__init__(network, clock)
        self.computed, self.steps = computed, 0
        self._pairs: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        self._sample = torch.empty(0)
        self._run = -1

    def find(self) -> list[Site]:
        """The one output."""
        check_single_output(self.network)
        check_recordable(self.network)
        return sites(self.network, OUTPUT)

    def forget(self) -> None:
        """Drop what was kept."""
        self._pairs = {}

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins: note the sample.

        Raises:
            ValueError: more steps are to be computed than the run has, or it is not as long as the one before.
        """
        if moment.run != self._run:
            check_computed(self.computed, moment.steps)
            if self.steps not in (0, moment.steps):
                raise ValueError(
                    f"runs of {self.steps} and of {moment.steps} network calls: all need to be of one length"
                )
            self.forget()
            self._run, self.steps = moment.run, moment.steps
        self._sample = sample_of(self.network, self._arguments.names[0], args, kwargs).clone()

    def leave(self, moment: Moment) -> None:
        """A call of the network ends well."""
        missed = self.sites if moment.step not in self._pairs.get(moment.branch, {}) else []
        check_reached(self.network, missed, len(self.sites), OUTPUT)

    def at_site(self, i: int, real: Callable[..., Any]) -> Callable[..., Any]:
        """The output as it is, kept with the sample."""

        def call(*args: Any, **kwargs: Any) -> Any:
            output = real(*args, **kwargs)
            if (moment := self._moment) is not None:
                check_shapes(self.network, output, self._sample)
                kept = self._pairs.setdefault(moment.branch, {})
                if moment.step in kept:
                    raise called_twice(self.network, self.sites[i], OUTPUT)
                kept[moment.step] = output.detach(), self._sample.detach()
            return output

        return call

    def branches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """By branch of guidance, outputs and samples of the run that is over, each of shape (K, ...).

        Raises:
            ValueError: a branch was not called at all steps.
        """
        for pairs in self._pairs.values():
            if len(pairs) < self.steps:
                raise ValueError(
                    f"{type(self.network).__name__} was called at {len(pairs)} of {self.steps} steps only, or with "
                    "guidance on in a part of the run: method='innovation' learns from whole runs; use method='fitted'"
                )
            if len({output.shape for output, _ in pairs.values()}) > 1:
                raise ValueError("outputs change their shape in mid-run: have guidance on throughout, or off")
            outputs, samples = zip(*(pairs[step] for step in range(self.steps)), strict=True)
            yield torch.stack(outputs), torch.stack(samples)


def learn(pipe: Any, source: Any, computed: int, seed: int, progress: bool = True) -> Statistics:
    """Statistics of uncached runs over observations or prompts; the pipeline is left as it was.

    Outputs and samples of a run are held on their device until it is over: 2 K tensors of the sample's size.

    Args:
        pipe: a pipeline with one denoiser.
        source: see `diffaccel.calibration_runs.runs`.
        computed: number of steps that are to be computed later.
        seed: of the first sample's noise, others follow.
        progress: show a progress bar where there is more than one run.

    Raises:
        ValueError: a pipeline with two denoisers, or whose network's output has not the shape of its sample; more
            computed steps than a run has; nothing to learn from.
    """
    name, network = only_denoiser(pipe)
    clock = clocks(pipe)[name]
    tape = PairTape(network, clock, computed)
    todo = runs(pipe, source, BATCH if isinstance(pipe, PolicyPipeline) else 1, seed)
    total, samples = np.zeros(()), 0
    try:
        tape.attach()
        for run in tqdm(todo, desc="recording", unit="run", disable=not progress or len(todo) == 1):
            run.make()
            for outputs, seen in tape.branches():
                total, samples = total + run.samples * moments(outputs, seen), samples + run.samples
    finally:
        tape.detach()
        clock.detach()
    answers = tuple(responses(pipe.scheduler, answered=True))
    return Statistics(total / samples, answers, Fingerprint.of(network, pipe.scheduler, tape.steps, OUTPUT), samples)


def check(statistics: Statistics, pipe: Any) -> None:
    """Raise ValueError unless statistics are of a pipeline; in how many steps pictures are drawn, each call says."""
    _, network = only_denoiser(pipe)
    scheduler: Any = pipe.scheduler
    steps = statistics.steps
    if isinstance(pipe, PolicyPipeline):
        fresh = type(scheduler).from_config(scheduler.config)
        fresh.set_timesteps(pipe.default_steps)
        steps = len(fresh.timesteps)  # solvers that visit times twice list them twice
    statistics.check(Fingerprint.of(network, scheduler, steps, OUTPUT))
