"""Speed: candidates timed in turn, so that a machine that slows down slows all of them down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median

import torch
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Timing:
    """Repeated timings of one candidate, one a round.

    Attributes:
        seconds: wall time.
        cpu_seconds: processor time of this process, all threads together: what other jobs on the machine cannot take.
            It says nothing about work on a GPU.
    """

    seconds: list[float]
    cpu_seconds: list[float]

    @property
    def median(self) -> float:
        """Median of the wall times."""
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Shortest and longest wall time."""
        return min(self.seconds), max(self.seconds)

    def ratio(self, baseline: Timing, cpu: bool = False) -> float:
        """Time over that of `baseline`: the median over rounds of the ratio in each round, which cancels slow drift.

        Args:
            baseline: a candidate of the same call of `alternate`.
            cpu: compare processor time instead of wall time.

        Raises:
            ValueError: the two have different numbers of rounds.
        """
        return median(self.ratios(baseline, cpu))

    def ratios(self, baseline: Timing, cpu: bool = False) -> list[float]:
        """Time over that of `baseline` in each round; see `ratio`."""
        if len(self.seconds) != len(baseline.seconds):
            raise ValueError(
                f"{len(self.seconds)} and {len(baseline.seconds)} rounds cannot be paired: time both candidates in one "
                "call of alternate"
            )
        own, other = (t.cpu_seconds if cpu else t.seconds for t in (self, baseline))
        return [a / b for a, b in zip(own, other, strict=True)]


def alternate(
    runs: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    warmup: int = 1,
    device: torch.device | str | None = None,
    progress: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
    during: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[str, Timing]:
    """Time candidates in turn, in reversed order every other round.

    Args:
        runs: the candidates by name.
        rounds: how often each is timed.
        warmup: how often each runs untimed before.
        device: where they run; on CUDA each run is waited for.
        progress: show a progress bar with the remaining time on stderr.
        clock: wall clock, in seconds.
        cpu_clock: processor time of this process, in seconds.
        during: by name, what is entered before a candidate runs and left after it, outside of the time taken.

    Returns:
        One timing per candidate, in the order of `runs`.

    Raises:
        ValueError: no candidate, no round, or a negative number of warm-up runs.
    """
    if not runs:
        raise ValueError("there is nothing to time: runs is empty")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be at least 1 and warmup at least 0, got {rounds} and {warmup}")
    cuda = device is not None and torch.device(device).type == "cuda"
    timings = {name: Timing([], []) for name in runs}
    order = list(runs)
    with tqdm(total=len(runs) * (warmup + rounds), desc="timing", unit="run", disable=not progress) as bar:
        for turn in range(-warmup, rounds):
            for name in reversed(order) if turn % 2 else order:
                with during[name]() if during else nullcontext():
                    if cuda:
                        torch.cuda.synchronize(device)
                    start, cpu_start = clock(), cpu_clock()
                    runs[name]()
                    if cuda:
                        torch.cuda.synchronize(device)
                    end, cpu_end = clock(), cpu_clock()
                if turn >= 0:
                    timings[name].seconds.append(end - start)
                    timings[name].cpu_seconds.append(cpu_end - cpu_start)
                bar.update()
    return timings
