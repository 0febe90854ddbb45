"""The comparison of `diffaccel generate --compare`: both in turn from the same seeds, the numbers, the pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffaccel.acceleration import accelerate_pipeline
from diffaccel.commands.method import outcome, short_name
from diffaccel.commands.text import render, table
from diffaccel.methods import Method
from diffaccel.metrics.parity import identical, psnr, relative_l2
from diffaccel.metrics.speed import Timing, alternate
from diffaccel.pipelines.image import to_pil
from diffaccel.report import format_bytes
from diffaccel.sheet import Cell, draw_sheet


@dataclass(frozen=True)
class Comparison:
    """Two runs from the same seeds.

    Attributes:
        name: of the method, in a few letters.
        baseline: pictures [n, 3, height, width] in 0..1.
        accelerated: pictures of the same shape.
        timings: of "baseline" and "accelerated", the pipeline as a whole.
        outcome: plan, bound and cache memory, see `diffaccel.commands.method.outcome`.
    """

    name: str
    baseline: Tensor
    accelerated: Tensor
    timings: dict[str, Timing]
    outcome: dict[str, Any]

    @property
    def rounds(self) -> int:
        """Timed runs of each."""
        return len(self.timings["baseline"].seconds)

    @property
    def speedups(self) -> tuple[float, float, float]:
        """Baseline time over accelerated time: median, lowest and highest of the rounds."""
        ratios = self.timings["accelerated"].ratios(self.timings["baseline"])
        median = self.timings["accelerated"].ratio(self.timings["baseline"])
        return 1 / median, 1 / max(ratios), 1 / min(ratios)

    @property
    def psnr(self) -> list[float]:
        """Of each accelerated picture against its baseline, dB; infinite where they are identical."""
        values: list[float] = psnr(self.accelerated, self.baseline).tolist()
        return values


def compare(
    pipe: Any, method: Method, draw: Callable[[int], Tensor], rounds: int, steps: int, progress: bool
) -> Comparison:
    """Draw without and with `method`, in turn; the pipeline is left as it was.

    Args:
        pipe: the pipeline.
        method: see `diffaccel.METHODS`.
        draw: draws all pictures [n, 3, height, width] in that many steps.
        rounds: timed runs of each, after a warm-up: a run of each, or two steps if there is only one round.
        steps: denoising steps.
        progress: show a progress bar.
    """
    drawn: dict[str, Tensor] = {}
    found: dict[str, Any] = {}

    def baseline() -> None:
        drawn["baseline"] = draw(steps)

    def accelerated() -> None:
        accelerate_pipeline(pipe, method)
        try:
            drawn["accelerated"] = draw(steps)
            found.update(outcome(pipe))
        finally:
            pipe.acceleration.remove()

    if rounds == 1:
        draw(2)
    runs = {"baseline": baseline, "accelerated": accelerated}
    timings = alternate(runs, rounds, warmup=int(rounds > 1), device=pipe.device, progress=progress)
    return Comparison(short_name(method), drawn["baseline"], drawn["accelerated"], timings, found)


def as_data(comparison: Comparison) -> dict[str, Any]:
    """The numbers for JSON. Where pictures are identical, which no number of dB says, `psnr_db` is None."""
    median, low, high = comparison.speedups
    return {
        **comparison.outcome,
        "rounds": comparison.rounds,
        "seconds": {name: timing.seconds for name, timing in comparison.timings.items()},
        "median_seconds": {name: timing.median for name, timing in comparison.timings.items()},
        "speedup": median,
        "speedup_range": [low, high],
        "psnr_db": [value if math.isfinite(value) else None for value in comparison.psnr],
        "relative_l2": relative_l2(comparison.accelerated, comparison.baseline).tolist(),
        "identical": identical(comparison.accelerated, comparison.baseline).tolist(),
    }


def as_text(comparison: Comparison, prompts: Sequence[str]) -> str:
    """The numbers in two tables: time, and likeness of each picture."""
    timings, found = comparison.timings, comparison.outcome
    times = table("", "computed", "seconds", "speed-up", "bound", "cache")
    every = f"{found['steps']} of {found['steps']} steps"
    times.add_row("baseline", every, _seconds(timings["baseline"]), "", "", "")
    cache = format_bytes(found["cache_bytes"])
    numbers = _seconds(timings["accelerated"]), _speedup(comparison), f"{found['bound']:.2f}x", cache
    times.add_row(comparison.name, found["computed"], *numbers)
    likeness = table("prompt", "PSNR to baseline")
    for prompt, value in zip(prompts, comparison.psnr, strict=True):
        likeness.add_row(prompt, _decibels(value))
    how = f"Speed: median of {comparison.rounds} rounds in turn after a warm-up, shortest to longest in brackets."
    if comparison.rounds == 1:
        how = "One run of each is no measurement of speed: add --rounds 5."
    why = "Bound: steps by computed steps; text encoders, decoder and forecasts keep a run below it."
    return f"{render(times)}\n{how}\n{why}\n\n{render(likeness)}"


def save_sheet(comparison: Comparison, prompts: Sequence[str], title: str, output: Path) -> None:
    """A picture with a row a prompt: baseline, accelerated, and their difference, magnified alike in all rows."""
    difference = (comparison.accelerated - comparison.baseline).abs()
    gain = _gain(difference.max().item())
    found, timings = comparison.outcome, comparison.timings
    columns = [
        ("baseline", f"{found['steps']} steps, {timings['baseline'].median:.2f} s"),
        (comparison.name, f"{found['computed']} computed, {timings['accelerated'].median:.2f} s"),
        ("difference", f"magnified {gain} times" if gain > 1 else "as it is"),
    ]
    parts = comparison.baseline, comparison.accelerated, (difference * gain).clamp(0, 1)
    rows = [
        (prompt, [Cell(plain), Cell(fast, f"PSNR {_decibels(value)}"), Cell(apart)])
        for prompt, value, plain, fast, apart in zip(prompts, comparison.psnr, *map(to_pil, parts), strict=True)
    ]
    rounds = f"median of {comparison.rounds} rounds" if comparison.rounds > 1 else "one run each"
    footer = f"speed-up {comparison.speedups[0]:.2f}x ({rounds}), bound {found['bound']:.2f}x"
    draw_sheet(columns, rows, title, footer).save(output)


def _gain(largest: float) -> int:
    """The power of two, at most 64, that brings a difference nearest below 1."""
    return 1 if largest == 0 else max(1, min(64, int(2 ** math.floor(-math.log2(largest)))))


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "identical"


def _seconds(timing: Timing) -> str:
    low, high = timing.spread
    return f"{timing.median:.2f}" if len(timing.seconds) == 1 else f"{timing.median:.2f} ({low:.2f} to {high:.2f})"


def _speedup(comparison: Comparison) -> str:
    median, low, high = comparison.speedups
    return f"{median:.2f}x" if comparison.rounds == 1 else f"{median:.2f}x ({low:.2f} to {high:.2f})"
