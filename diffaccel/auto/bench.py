"""The bench of a search: full runs are recorded, candidates drawn from the same noise, and timed in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.auto.choice import works_on
from diffaccel.auto.quality import Quality
from diffaccel.calibration import Calibration
from diffaccel.evaluation import timing
from diffaccel.evaluation.candidates import Candidate
from diffaccel.evaluation.subject import Subject, free_memory
from diffaccel.evaluation.timing import Clock
from diffaccel.metrics.parity import psnr
from diffaccel.recording import recording
from diffaccel.response import responses


@dataclass(frozen=True)
class Timed:
    """Whole calls of the pipeline that were timed in turn with the full run.

    Attributes:
        shares: part of the full run's time, one a round.
        clock: which time counts, see `diffaccel.evaluation.timing.Clock`.
        contention: wall time over processor time of all runs, or the longest over the shortest full run on a GPU.
    """

    shares: list[float]
    clock: str
    contention: float

    @property
    def share(self) -> float:
        """Median over rounds."""
        return median(self.shares)


class Bench:
    """A pipeline with prompts to learn from and others to judge by.

    Args:
        pipe: the pipeline; it is left as it was.
        learnt: one prompt a picture that is recorded.
        judged: one prompt a picture that candidates draw.
        steps: what the pipeline is called with.
        arguments: further arguments of its call.
        batch: pictures a call.
        seed: of the first picture that is judged, others follow, then those that are recorded.
        progress: show progress bars.
    """

    def __init__(
        self,
        pipe: Any,
        learnt: Sequence[str],
        judged: Sequence[str],
        steps: int,
        arguments: Mapping[str, Any],
        batch: int,
        seed: int,
        progress: bool,
    ) -> None:
        self.learnt = Subject(pipe, learnt, seed + len(judged), steps, arguments)
        self.judged = Subject(pipe, judged, seed, steps, arguments)
        self.pipe, self.steps, self.batch, self.progress = pipe, steps, batch, progress
        self._reference: Tensor | None = None

    def record(self, levels: Sequence[str]) -> dict[str, Calibration]:
        """What full runs of the prompts to learn from tell, by level."""
        with ExitStack() as stack:
            recorders = {level: stack.enter_context(recording(self.pipe, level)) for level in levels}
            self._draw(self.learnt, Candidate.full(self.steps), "recording")
        traces = {level: recorder.trace() for level, recorder in recorders.items()}
        notes = {"responses": responses(self.pipe.scheduler, answered=True)}
        return {level: Calibration({t.steps: replace(t, notes=notes)}) for level, t in traces.items()}

    def judge(self, candidate: Candidate) -> Quality:
        """How near a candidate's pictures are to those of the full run."""
        if self._reference is None:
            self._reference = self._draw(self.judged, Candidate.full(self.steps), "full runs")
        return Quality.of(psnr(self._draw(self.judged, candidate, candidate.name), self._reference).tolist())

    def time(self, candidates: Sequence[Candidate], rounds: int) -> list[Timed]:
        """Time candidates and the full run in turn."""
        full = Candidate.full(self.steps)
        times = timing.measure(self.judged, [full, *candidates], slice(self.batch), rounds, self.progress)
        clock, whole = Clock(cpu=works_on(self.pipe).type == "cpu"), times[full.name]
        wall, cpu = (sum(sum(getattr(t, kind)) for t in times.values()) for kind in ("seconds", "cpu_seconds"))
        contention = wall / cpu if clock.cpu else max(whole.seconds) / min(whole.seconds)
        return [Timed(times[one.name].ratios(whole, clock.cpu), clock.name, contention) for one in candidates]

    def time_plain(self, chosen: Candidate, share: float, rounds: int) -> tuple[int, Timed, float]:
        """The plain run of fewer steps that takes as long as what was chosen, or a little less.

        Args:
            chosen: what was chosen.
            share: part of the full run's time that it takes.
            rounds: timed runs of each.

        Returns:
            Its steps, its time, and its time over that of what was chosen, which is timed with it: the median over
            rounds.
        """
        steps = min(self.steps - 1, max(1, round(share * self.steps)))
        own, pilot = self.time([chosen, Candidate.fewer(steps)], timing.PILOT_ROUNDS)
        equal = timing.guess_equal_steps({self.steps: 1.0, steps: pilot.share}, own.share, self.steps - 1)
        own, plain = self.time([chosen, Candidate.fewer(equal)], rounds)
        ratios = [a / b for a, b in zip(plain.shares, own.shares, strict=True)]
        return equal, plain, median(ratios)

    def _draw(self, subject: Subject, candidate: Candidate, title: str) -> Tensor:
        """All pictures of a subject by a candidate."""
        count = len(subject.prompts)
        parts = []
        with (
            candidate.applied(self.pipe),
            torch.no_grad(),
            tqdm(total=count, desc=title, unit="picture", leave=False, disable=not self.progress) as bar,
        ):
            for start in range(0, count, self.batch):
                parts.append(subject.pictures(candidate, slice(start, min(start + self.batch, count))))
                bar.update(len(parts[-1]))
        free_memory(self.pipe.device)
        return torch.cat(parts)


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """The pipeline without its own progress bar, which would cross ours; as it was when this ends."""
    missing = object()
    before = vars(pipe).get("_progress_bar_config", missing)
    pipe._progress_bar_config = {**(before if isinstance(before, dict) else {}), "disable": True}
    try:
        yield
    finally:
        if before is missing:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
