"""Recording what each branch of a network adds, call by call, and what block-wise schedules are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffaccel.additions import edited
from diffaccel.block_schedules import check_single
from diffaccel.branches import layers, unfused
from diffaccel.calibration_runs import runs
from diffaccel.clock import Clock, Moment
from diffaccel.compiled import check_recordable
from diffaccel.denoisers import clocks
from diffaccel.methods.bac import bubbling_loss
from diffaccel.query_clock import QueryClock
from diffaccel.similarity import similarity
from diffaccel.sites import BRANCH, Site, called_twice, check_reached, sites
from diffaccel.watch import Watch


@dataclass(frozen=True)
class Learnt:
    """What the runs of one network told.

    Attributes:
        names: of the blocks, in order of execution.
        steps: calls of the network in a run, K.
        similarities: by block, shape (K, K), mean over samples: row = step that filled the cache, column = step of use.
        losses: by block, l_j of the bubbling union.
    """

    names: tuple[str, ...]
    steps: int
    similarities: dict[str, NDArray[np.float64]]
    losses: dict[str, float]


class Tape(Watch):
    """What each branch adds in the run in progress.

    Features are held on their device until the run is over: steps x tokens x width values a block, 25 MB for one query
    of a policy of 8 layers, width 256, 100 steps, in float32.
    """

    def __init__(self, network: nn.Module, clock: Clock) -> None:
        super().__init__(network, clock)
        self.added: dict[tuple[str, int], list[Tensor]] = {}  # by branch of guidance and block, one (B, ...) a step
        self._run = -1

    def find(self) -> list[Site]:
        """The branches of all layers."""
        check_recordable(self.network)
        return sites(self.network, BRANCH)

    def forget(self) -> None:
        """Drop what was kept."""
        self.added = {}

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins."""
        if moment.run != self._run:
            self.forget()
            self._run = moment.run

    def leave(self, moment: Moment) -> None:
        """A call of the network ends well."""
        missed = [site for i, site in enumerate(self.sites) if (moment.branch, i) not in self.added]
        check_reached(self.network, missed, len(self.sites), BRANCH)

    def _place(self) -> None:
        """Nothing by itself: `taped` edits the branches."""

    def keep(self, i: int, added: Tensor) -> Tensor:
        """What block `i` adds in a call, kept."""
        if self._moment is not None:
            kept = self.added.setdefault((self._moment.branch, i), [])
            if len(kept) > self._moment.step:
                raise called_twice(self.network, self.sites[i], BRANCH)
            kept.append(added.detach())
        return added


@contextmanager
def taped(network: nn.Module, clock: Clock) -> Iterator[Tape]:
    """Record what branches add in the `with` block; the network computes what it does otherwise."""
    tape, found = Tape(network, clock), layers(network)
    tape.attach()
    hooks = unfused(found)
    try:
        with edited(found, tape.keep):
            yield tape
    finally:
        for hook in hooks:
            hook.remove()
        tape.detach()
        clock.detach()


def learn(pipe: Any, source: Any, metric: str, seed: int, progress: bool = True) -> Learnt:
    """Similarities and losses of all blocks, from one uncached run for each observation or prompt.

    Args:
        pipe: a pipeline with one denoiser; it is left as it was.
        source: see `diffaccel.calibration_runs.runs`.
        metric: of the similarity, see `diffaccel.similarity`.
        seed: of the first run's noise, others follow.
        progress: show a progress bar where there is more than one run.

    Raises:
        ValueError: the pipeline has two denoisers, no branch, or runs of unequal length; or nothing to learn from.
    """
    ((name, network),) = check_single(pipe).items()
    todo, clock = runs(pipe, source, seed=seed), clocks(pipe)[name]
    found: list[tuple[list[NDArray[np.float64]], list[float]]] = []
    steps: set[int] = set()
    with taped(network, clock) as tape:
        if isinstance(clock, QueryClock):  # which learns from a first query how many calls there are
            todo[0].make()
        for run in tqdm(todo, desc="recording", unit="run", disable=not progress or len(todo) == 1):
            run.make()
            features = list(_by_block(tape))
            steps |= {feature.shape[1] for feature in features}
            if len(steps) > 1:
                raise ValueError(f"runs of {sorted(steps)} network calls were recorded: all need to be of one length")
            sums = len({feature[0, 0].numel() for feature in features}) == 1
            found.append(
                (
                    [similarity(feature, metric, samples=True) for feature in features],
                    [bubbling_loss(feature, sums, samples=True) for feature in features],
                )
            )
            tape.forget()
        names = tuple(site.name for site in tape.sites)
    tables = {n: np.mean([tables[i] for tables, _ in found], axis=0) for i, n in enumerate(names)}
    losses = {n: float(np.mean([losses[i] for _, losses in found])) for i, n in enumerate(names)}
    return Learnt(names, steps.pop(), tables, losses)


def _by_block(tape: Tape) -> Iterator[Tensor]:
    """What each block added, branches of guidance as further samples, shape (samples, steps, numbers)."""
    guidance = list(dict.fromkeys(branch for branch, _ in tape.added))
    for i in range(len(tape.sites)):
        series = [torch.stack([part.flatten(1) for part in tape.added[branch, i]], dim=1) for branch in guidance]
        yield torch.cat(series)
