"""Recording a trace: run the pipeline as often as you like, and its features are summed up as they pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffaccel.clock import Moment, PipelineClock
from diffaccel.compiled import check_recordable
from diffaccel.descriptors import LEAST_STEPS
from diffaccel.feature import Feature, dims_axis
from diffaccel.fingerprint import Fingerprint
from diffaccel.moments import Moments, subset
from diffaccel.sites import Site, called_twice, check_reached, sites
from diffaccel.trace import Trace, recordable
from diffaccel.watch import Watch, check_free

logger = logging.getLogger("diffaccel")

Series = dict[int, dict[int, Tensor]]  # by leaf and step, shape (samples, tokens, dims)


class Recorder:
    """Records the runs of a pipeline. Made by `recording`.

    The features of a run are held on their device until its end, `tokens` tokens a sample: steps x tokens x batch x
    dimensions values a leaf, 20 MB for FLUX.1, 50 steps, 64 tokens in bfloat16. Then they are summed up: the statistics
    take 31 MB a leaf in main memory, however many runs there are. FLUX.1 has 2 leaves at level "model".
    """

    def __init__(self, pipe: Any, level: str, tokens: int) -> None:
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        self.pipe, self.level, self.tokens = pipe, level, tokens
        self.clock = PipelineClock(pipe)
        self.runs = 0
        self._run = -1
        self._fingerprints: dict[str, Fingerprint] = {}
        self._totals: dict[tuple[str, str], list[Moments]] = {}  # by network and site
        self._tracks = {name: Track(network, self) for name, network in recordable(pipe).items()}

    def trace(self) -> Trace:
        """The statistics of all complete runs so far.

        Raises:
            RuntimeError: there was none.
        """
        if not self.runs:
            raise RuntimeError("no complete run was recorded: run the pipeline inside `with recording(pipe) as ...`")
        networks: dict[str, dict[str, list[Moments]]] = {name: {} for name in self._tracks}
        for (name, site), moments in self._totals.items():
            networks[name][site] = moments
        return Trace(networks, dict(self._fingerprints), self.runs, self.tokens)

    def attach(self) -> None:
        """Put hooks and patches in place."""
        for track in self._tracks.values():
            track.attach()
        self.clock.finished.append(self._finish)

    def detach(self) -> None:
        """Restore every attribute and drop a run that is not complete."""
        for track in self._tracks.values():
            track.detach()
        self.clock.detach()

    def begin(self, moment: Moment) -> None:
        """A call of a network begins; if it begins a run, drop what a cancelled one left and check that it fits."""
        if moment.run == self._run:
            return
        for track in self._tracks.values():
            track.forget()
        if moment.steps < LEAST_STEPS:
            raise ValueError(f"a run of {moment.steps} steps is too short to be recorded: make at least {LEAST_STEPS}")
        fingerprints = {}
        for name, track in self._tracks.items():
            check_free(track.network)
            now = Fingerprint.of(track.network, self.pipe.scheduler, moment.steps, self.level)
            if self.runs and (found := self._fingerprints[name].differences(now)):
                raise ValueError(
                    f"the runs recorded so far had another {' and another '.join(found)}: "
                    "record each kind in a trace of its own"
                )
            fingerprints[name] = now
        self._run = moment.run
        if not self.runs:
            self._fingerprints = fingerprints

    def _finish(self) -> None:
        """The last step of a run is done: add its moments, those of all sites or none."""
        try:
            # A run cut off earlier may be stepped on by another pipeline that shares the scheduler.
            if missed := set(range(self.clock.steps)).difference(*(track.steps for track in self._tracks.values())):
                logger.warning("a run was not recorded: no network was called at steps %s", sorted(missed))
                return
            tracks = self._tracks.items()
            new = {(name, site): moments for name, track in tracks for site, moments in track.moments().items()}
        finally:
            for track in self._tracks.values():
                track.forget()
        if self.runs:
            if new.keys() != self._totals.keys():
                raise ValueError("this run used other networks than the ones recorded before it: record them apart")
            pairs = {key: zip(self._totals[key], moments, strict=True) for key, moments in new.items()}
            new = {key: [one.merged(other) for one, other in pair] for key, pair in pairs.items()}
        self._totals = new
        self.runs += 1


class Track(Watch):
    """The recording of one network: its sites, and what they returned in the run in progress."""

    def __init__(self, network: nn.Module, recorder: Recorder) -> None:
        self.recorder = recorder
        super().__init__(network, recorder.clock)
        self.steps: set[int] = set()  # those of the run in progress in which the network was called
        self._series: dict[tuple[int, str], Series] = {}  # by site and branch
        self._axes: dict[tuple[int, int], int] = {}  # of the dimensions, by site and leaf

    def find(self) -> list[Site]:
        """The sites at the level that is recorded."""
        check_recordable(self.network)
        return sites(self.network, self.recorder.level)

    def forget(self) -> None:
        """Drop the features of the run in progress."""
        self._series, self.steps = {}, set()

    def moments(self) -> dict[str, list[Moments]]:
        """By site, the moments of each leaf in the run that is complete; empty if the network was not called."""
        by_site: dict[int, list[Series]] = {}
        for (i, _), series in self._series.items():
            by_site.setdefault(i, []).append(series)
        return {self.sites[i].name: self._pooled(i, by_site[i]) for i in sorted(by_site)}

    def _pooled(self, i: int, branches: list[Series]) -> list[Moments]:
        """The moments of each leaf of a site, guidance branches pooled."""
        result = []
        steps = tuple(next(iter(branches[0].values()), ()))
        for leaf in branches[0]:
            if any(tuple(branch.get(leaf, ())) != steps for branch in branches):
                raise RuntimeError(
                    f"{type(self.network).__name__} ran its guidance branches at different steps: record with guidance "
                    "on from the first step to the last, or off"
                )
            parts = [torch.stack(list(branch[leaf].values())).flatten(1, 2) for branch in branches]
            try:
                result.append(Moments.of(torch.cat(parts, 1), leaf, self._axes[i, leaf], steps))
            except ValueError as error:
                raise ValueError(f"{type(self.network).__name__}, {self.sites[i].name}: {error}") from error
        return result

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins."""
        self.recorder.begin(moment)

    def leave(self, moment: Moment) -> None:
        """A call of the network ends well."""
        self.steps.add(moment.step)
        missed = [site for i, site in enumerate(self.sites) if (i, moment.branch) not in self._series]
        check_reached(self.network, missed, len(self.sites), self.recorder.level)

    def at_site(self, i: int, real: Callable[..., Any]) -> Callable[..., Any]:
        """Site `i` as it is installed: compute, and keep a part."""

        def call(*args: Any, **kwargs: Any) -> Any:
            output = real(*args, **kwargs)
            if self._moment is not None:
                self._keep(i, self._moment, Feature(output))
            return output

        return call

    def _keep(self, i: int, moment: Moment, feature: Feature) -> None:
        series = self._series.setdefault((i, moment.branch), {})
        for leaf, tensor in enumerate(feature.leaves):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.ndim == 0:
                continue
            part = subset(tensor.detach(), self.recorder.tokens)
            self._axes[i, leaf] = 1 if dims_axis(tensor) < tensor.ndim - 1 else -1
            kept = series.setdefault(leaf, {})
            if moment.step in kept:
                raise called_twice(self.network, self.sites[i], self.recorder.level)
            before = next(iter(kept.values()), part)
            if before.shape != part.shape:
                raise RuntimeError(
                    f"the feature of {self.sites[i].name} changes its shape in mid-run, {tuple(before.shape)} and then "
                    f"{tuple(part.shape)} (samples, tokens, dimensions): record with guidance on throughout, or off"
                )
            kept[moment.step] = part


@contextmanager
def recording(pipe: Any, level: str = "model", tokens: int = 64) -> Iterator[Recorder]:
    """Record the runs of `pipe` in the `with` block; `recorder.trace()` then has the statistics of their features.

    Any prompts, sizes and batches; one scheduler and one number of steps. Guidance branches are pooled. Runs that were
    cancelled do not count. The pipeline computes exactly what it does otherwise, and is left as it was.

    Args:
        pipe: a diffusers pipeline.
        level: level of sites, see `diffaccel.sites`.
        tokens: at most so many tokens of each sample are read, evenly spaced.

    Raises:
        TypeError: no pipeline, or a network that takes no timestep.
        ValueError: a value out of range, no site, or a network that is accelerated.
    """
    recorder = Recorder(pipe, level, tokens)
    try:
        recorder.attach()
        yield recorder
    finally:
        recorder.detach()
