"""Calibrations: traces of a pipeline with what was worked out from them, found, checked and handed to methods."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.calibration_runs import runs
from diffaccel.clusters import COUNTS, cluster
from diffaccel.moments import Moments
from diffaccel.pipelines.source import call_defaults
from diffaccel.recording import recording
from diffaccel.response import responses
from diffaccel.trace import Trace

NAME = "calibration-{level}-{steps}.safetensors"
COMMAND = "make one with `diffaccel calibrate MODEL --prompts FILE`, or give calibration=[prompts], or observations"

T = TypeVar("T")
Source = Trace | str | Path | Sequence[str] | Tensor | None


@dataclass(frozen=True, eq=False)
class Calibration:
    """Traces of one pipeline at one level, by number of steps.

    Attributes:
        traces: by number of steps.
        source: what `find` was given to find them by; None for the pipeline's own folder.
        found: whether `find` found them.
    """

    traces: Mapping[int, Trace]
    _known: dict[Hashable, Any] = field(default_factory=dict)
    source: Source = None
    found: bool = False

    def __repr__(self) -> str:
        return f"Calibration({', '.join(map(str, sorted(self.traces)))} steps, {self.digest})"

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits that differ between calibrations."""
        hasher = hashlib.sha256()
        for steps, trace in sorted(self.traces.items()):
            hasher.update(f"{steps} {json.dumps(trace.notes, sort_keys=True)}".encode())
            for sites in trace.networks.values():
                for moments in (moments for leaves in sites.values() for moments in leaves):
                    hasher.update(moments.centred.numpy().tobytes())
        return hasher.hexdigest()[:8]

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """What `work` returned when it was first asked for under this key: forecasters are worked out once."""
        if key not in self._known:
            self._known[key] = work()
        result: T = self._known[key]
        return result

    def trace(self, steps: int) -> Trace:
        """The trace of runs of so many steps.

        Raises:
            ValueError: there is none.
        """
        if steps not in self.traces:
            held = ", ".join(map(str, sorted(self.traces)))
            raise ValueError(
                f"this pipeline was calibrated for {held} steps, this run has {steps}: call the pipeline with "
                f"num_inference_steps={min(self.traces)}, or calibrate it with `diffaccel calibrate --steps {steps}`"
            )
        return self.traces[steps]

    def moments(self, network: str | None, site: str, steps: int) -> list[Moments]:
        """Statistics of what a site returns, one a floating-point tensor.

        Args:
            network: its name in the pipeline; None for a network of its own.
            site: name of the site.
            steps: of the run.
        """
        networks = self.trace(steps).networks
        sites = networks[network] if network is not None else next(iter(networks.values()))
        if site not in sites:
            raise ValueError(f"the calibration has no statistics of {site}: {COMMAND}")
        return sites[site]

    def features(self, network: str | None, steps: int) -> list[Moments]:
        """Statistics of everything that all sites of a network return."""
        networks = self.trace(steps).networks
        sites = networks[network] if network is not None else next(iter(networks.values()))
        return [moments for leaves in sites.values() for moments in leaves]

    def labels(self, network: str | None, site: str, leaf: int, clusters: int, steps: int) -> list[int]:
        """The cluster of each dimension of a feature.

        Raises:
            ValueError: the calibration does not hold so many clusters.
        """
        notes = self.trace(steps).notes["clusters"]
        found = (notes[network] if network is not None else next(iter(notes.values())))[site][str(leaf)]
        if str(clusters) not in found:
            raise ValueError(f"clusters must be one of {', '.join(found)}, got {clusters}")
        return list(found[str(clusters)])

    def responses(self, steps: int) -> list[float]:
        """How much the result moves with the network's output at each step, see `diffaccel.response`."""
        return list(self.trace(steps).notes["responses"])

    def tuned(self, computed: int, steps: int) -> tuple[int, float] | None:
        """Anchors and feedback that were best for so many computed steps, see `diffaccel.tuning`; None if not tuned."""
        found = self.trace(steps).notes.get("tuned", {}).get(str(computed))
        return None if found is None else (int(found["anchors"]), float(found["feedback"]))


def record(
    pipe: Any,
    source: Any,
    steps: int | None = None,
    level: str = "model",
    batch: int = 16,
    seed: int = 0,
    progress: bool = False,
    **arguments: Any,
) -> Trace:
    """A trace of uncached runs of a pipeline, with the clusters of all dimensions.

    Args:
        pipe: one that draws pictures from prompts or classes, or a `PolicyPipeline`; it is left as it was.
        source: prompts, one a picture; observations for a policy.
        steps: of each run; the pipeline's default if None.
        level: of the sites.
        batch: samples a run.
        seed: of the first sample's noise, others follow.
        progress: show a progress bar.
        **arguments: further arguments of `diffaccel.pipelines.image.pictures`.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: nothing to learn from, or runs too short.
    """
    todo = runs(pipe, source, batch, seed, steps, **arguments)
    bar = tqdm(total=sum(run.samples for run in todo), desc="recording", unit="sample", disable=not progress)
    with recording(pipe, level) as recorder, bar:
        for run in todo:
            run.make()
            bar.update(run.samples)
    return worked_out(recorder.trace(), pipe.scheduler)


def worked_out(trace: Trace, scheduler: Any) -> Trace:
    """A trace with what methods need in its notes: clusters of all dimensions, responses of the scheduler.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: the scheduler has no timesteps yet.
    """
    groups = {
        network: {
            site: {str(m.leaf): {str(c): cluster(m.descriptors.mean(0), c) for c in COUNTS} for m in leaves}
            for site, leaves in sites.items()
        }
        for network, sites in trace.networks.items()
    }
    return replace(trace, notes={**trace.notes, "clusters": groups, "responses": responses(scheduler, answered=True)})


def find(pipe: Any, source: Calibration | Source, level: str) -> Calibration:
    """The calibration of a pipeline, checked.

    Args:
        pipe: the pipeline.
        source: a trace; a file or folder of them; prompts or observations, by which one is recorded now; None for the
            files that lie in the pipeline's own folder.
        level: of the sites.

    Raises:
        ValueError: there is none, it is of another model, scheduler or level, or without what `worked_out` notes.
        FileNotFoundError: there is no such file.
    """
    traces: list[Trace]
    if isinstance(source, Calibration):
        for trace in source.traces.values():
            trace.check(pipe, trace.steps, level)
        return source
    if isinstance(source, Trace):
        traces = [source]
    elif source is not None and not isinstance(source, str | Path):
        traces = [record(pipe, source, _steps(pipe), level)]
    else:
        traces = [Trace.load(path) for path in _files(pipe, source, level)]
    for trace in traces:
        trace.check(pipe, trace.steps, level)
        if not {"clusters", "responses"} <= trace.notes.keys():
            raise ValueError(f"this is a bare trace, without clusters of dimensions: {COMMAND}")
    return Calibration({trace.steps: trace for trace in traces}, source=source, found=True)


def ready(method: Any) -> Calibration:
    """The calibration of a method. Raises ValueError if it has none yet."""
    if not isinstance(method.calibration, Calibration):
        raise ValueError(
            f"{type(method).__name__} needs a calibration of the pipeline: use accelerate_pipeline(pipe, ...), which "
            f"finds it; {COMMAND}"
        )
    return method.calibration


def _files(pipe: Any, source: str | Path | None, level: str) -> list[Path]:
    folder = Path(str(getattr(pipe, "name_or_path", ""))) if source is None else Path(source)
    if source is not None and not folder.is_dir():
        return [folder]
    found = sorted(folder.glob(NAME.format(level=level, steps="*"))) if folder.is_dir() else []
    if not found:
        where = f"in {folder}" if source is not None else f"for this {type(pipe).__name__}"
        raise ValueError(f"there is no calibration {where} at level {level!r}: {COMMAND}")
    return found


def _steps(pipe: Any) -> int | None:
    steps = call_defaults(str(getattr(pipe, "name_or_path", ""))).get("num_inference_steps")
    return None if steps is None else int(steps)
