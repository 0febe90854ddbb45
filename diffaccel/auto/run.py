"""The search itself: record, forecast, run what is promising, time what is chosen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from diffaccel.auto.bench import Bench, Timed, quiet
from diffaccel.auto.candidates import LEARNT, method_of, rows
from diffaccel.auto.choice import Choice, Conditions, Plain, Speed
from diffaccel.auto.request import Request
from diffaccel.auto.search import Row, choose, cost, nearest, next_trial
from diffaccel.calibration import Calibration
from diffaccel.commands.env import environment
from diffaccel.evaluation.candidates import Candidate
from diffaccel.evaluation.timing import PILOT_ROUNDS
from diffaccel.methods import Method
from diffaccel.trace import recordable

logger = logging.getLogger("diffaccel")

MOST = 24
"""Candidates that are run at most."""


def search(pipe: Any, request: Request, bench: Bench, rounds: int) -> Choice:
    """The acceleration that reaches the request's target.

    Args:
        pipe: the pipeline; it is left as it was.
        request: what is asked for.
        bench: with prompts to learn from and to judge by.
        rounds: timed runs of what is chosen.

    Raises:
        ValueError: nothing reaches the target; the message says what comes nearest.
    """
    with quiet(pipe):
        learnt = [level for level in request.levels if level in LEARNT]
        state = Search(bench, request, bench.record(learnt or ["model"]), rounds)
        for level in learnt:
            state.run(state.pilot(level))
        return state.choice(state.settle())


class Search:
    """A search in progress: the table of candidates, and what runs showed."""

    def __init__(self, bench: Bench, request: Request, calibrations: Mapping[str, Calibration], rounds: int) -> None:
        self.bench, self.request, self.target, self.rounds = bench, request, request.target, rounds
        self.calibrations = calibrations
        self.evaluations = next(iter(next(iter(calibrations.values())).traces))
        found = rows(recordable(bench.pipe), request.levels, calibrations, self.evaluations)
        self.rows: dict[str, Row] = {row.name: row for row in found}
        self.timings: dict[str, Timed] = {}  # by name

    @property
    def table(self) -> list[Row]:
        """All candidates."""
        return list(self.rows.values())

    def pilot(self, level: str) -> Row:
        """The candidate that a level is tried with first: fitted, at a third of the steps."""
        fitted = [row for row in self.table if row.level == level and row.family.startswith("fitted")]
        return min(fitted, key=lambda row: abs(row.computed - self.evaluations / 3))

    def run(self, row: Row) -> None:
        """Draw with a candidate, and time the first of each pace."""
        try:
            quality = self.bench.judge(self.candidate(row))
            if not any(other.timed for other in self.table if other.pace == row.pace):
                self.time(row, PILOT_ROUNDS)  # by which the times of its pace are expected
        except torch.OutOfMemoryError:
            if len({other.level for other in self.table}) == 1:
                raise
            logger.warning("auto leaves out level %r, for which this device has too little memory", row.level)
            self.rows = {name: other for name, other in self.rows.items() if other.level != row.level}
            return
        self.rows[row.name] = replace(self.rows[row.name], quality=quality)

    def time(self, row: Row, rounds: int) -> None:
        """Time a candidate beside the full run."""
        [timed] = self.bench.time([self.candidate(row)], rounds)
        self.timings[row.name] = timed
        self.rows[row.name] = replace(self.rows[row.name], timed=timed.share)

    def candidate(self, row: Row) -> Candidate:
        """A row to draw with."""
        return Candidate(row.name, "method", self.bench.steps, method_of(row.name, self.calibrations))

    def settle(self) -> Row:
        """Run and time candidates until nothing is likely to change the choice."""
        with tqdm(desc=f"candidates for {self.target}", unit="run", disable=not self.bench.progress) as bar:
            for _ in range(2 * MOST):
                runs = sum(row.quality is not None for row in self.table)
                row = next_trial(self.table, self.target) if runs < MOST else None
                if row is not None:
                    self.run(row)
                    bar.update()
                    continue
                row = choose(self.table, self.target)
                if row is None and self.target.psnr is not None:
                    break
                row = row or nearest(self.table, self.target)
                if self._settled(row):
                    break
                self.time(row, self.rounds)
        chosen = choose(self.table, self.target)
        if chosen is None or not self._settled(chosen):
            raise ValueError(self._failure())
        return chosen

    def _settled(self, row: Row) -> bool:
        """Whether a candidate was timed as often as asked for."""
        return row.name in self.timings and len(self.timings[row.name].shares) >= self.rounds

    def _failure(self) -> str:
        best = nearest(self.table, self.target)
        runs = sum(row.quality is not None for row in self.table)
        if best.quality is not None and self.target.psnr is not None:
            found = f"the most faithful of {runs} that were run is {best.name}, PSNR {best.quality}"
            if best.quality.low >= self.target.psnr:
                found = f"{best.name} does, and takes {best.timed or cost(self.table, best):.2f} of the full run's time"
        else:
            found = f"the fastest is {best.name}, {1 / (best.timed or cost(self.table, best)):.2f}x"
        return (
            f"no acceleration reaches {self.target} on this pipeline at {self.bench.steps} steps: {found}. "
            "The pipeline is as it was; ask for less"
        )

    def choice(self, row: Row) -> Choice:
        """The choice of a candidate that was run and timed."""
        timed = self.timings[row.name]
        steps, plain, ratio = self.bench.time_plain(self.candidate(row), timed.share, self.rounds)
        calibrations = {level: Calibration(held.traces) for level, held in self.calibrations.items()}
        method: Method = method_of(row.name, calibrations)
        assert row.quality is not None
        pictures = min(self.bench.batch, len(self.bench.judged.prompts))
        pipe, request = self.bench.pipe, self.request
        return Choice(
            target=self.target,
            name=row.name,
            method=method,
            plan=method.plan([], self.evaluations),
            quality=row.quality,
            speed=Speed.of(timed.shares, timed.clock, pictures),
            plain=Plain(
                steps,
                self.bench.judge(Candidate.fewer(steps)),
                Speed.of(plain.shares, plain.clock, pictures),
                ratio,
            ),
            conditions=Conditions.of(pipe, request.steps, self.evaluations, method.level, request.arguments),
            contention=timed.contention,
            tried=self.tried(),
            environment=environment(),
        )

    def tried(self) -> list[dict[str, Any]]:
        """What was run, fastest first."""
        run = [row for row in self.table if row.quality is not None]
        return [
            {
                "method": row.name,
                "computed": row.computed,
                "expected_speedup": 1 / cost(self.table, row),
                "measured_speedup": None if row.timed is None else 1 / row.timed,
                "psnr": None if row.quality is None else row.quality.as_dict(),
            }
            for row in sorted(run, key=lambda row: (cost(self.table, row), row.name))
        ]
