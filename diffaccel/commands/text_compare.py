"""The comparison of `diffaccel generate-text --compare`: both in turn, the texts, the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffaccel.acceleration import accelerate_pipeline
from diffaccel.commands.text import render, table
from diffaccel.metrics.speed import Timing, alternate
from diffaccel.report import format_bytes

if TYPE_CHECKING:
    from diffaccel.dlm.decoding import TextMethod
    from diffaccel.dlm.report import TextReport
    from diffaccel.pipelines.text import TextDiffusionOutput, TextDiffusionPipeline

PLAIN, FAST = "plain", "accelerated"


@dataclass(frozen=True)
class TextComparison:
    """Two runs from the same prompts and seeds.

    Attributes:
        name: of the method, in a few letters.
        outputs: of "plain" and "accelerated": texts, tokens and report.
        timings: of both, the call as a whole.
    """

    name: str
    outputs: dict[str, TextDiffusionOutput]
    timings: dict[str, Timing]

    @property
    def speedups(self) -> tuple[float, float, float]:
        """Plain time over accelerated time: median, lowest and highest of the rounds."""
        ratios = self.timings[FAST].ratios(self.timings[PLAIN])
        return 1 / self.timings[FAST].ratio(self.timings[PLAIN]), 1 / max(ratios), 1 / min(ratios)

    @property
    def equal_tokens(self) -> list[int]:
        """Of each text, how many tokens are the same at the same place."""
        pairs = zip(self.outputs[FAST].sequences, self.outputs[PLAIN].sequences, strict=True)
        return [int((fast == plain).sum()) for fast, plain in pairs]

    @property
    def equal(self) -> list[bool]:
        """Of each text, whether all tokens are the same."""
        return [count == len(one) for count, one in zip(self.equal_tokens, self.outputs[PLAIN].sequences, strict=True)]

    def rate(self, name: str) -> float:
        """Tokens per second, by the median time."""
        return self.outputs[name].report.tokens / self.timings[name].median


def compare(
    pipe: TextDiffusionPipeline,
    method: TextMethod,
    name: str,
    first: Callable[[], TextDiffusionOutput],
    again: Callable[[], TextDiffusionOutput],
    rounds: int,
    progress: bool,
) -> TextComparison:
    """Write without and with `method`, in turn; the pipeline is left as it was.

    Args:
        pipe: the pipeline.
        method: see `diffaccel.METHODS`.
        name: of the method, in a few letters.
        first: writes all texts in the first run of each, which is not timed.
        again: writes them in the timed runs.
        rounds: timed runs of each.
        progress: show a progress bar.
    """

    def fast(write: Callable[[], TextDiffusionOutput]) -> TextDiffusionOutput:
        accelerate_pipeline(pipe, method)
        try:
            return write()
        finally:
            pipe.acceleration.remove()

    outputs = {PLAIN: first(), FAST: fast(first)}
    runs = {PLAIN: again, FAST: lambda: fast(again)}
    timings = alternate(runs, rounds, warmup=0, device=torch.device(pipe.device), progress=progress)
    return TextComparison(name, outputs, timings)


def output_data(output: TextDiffusionOutput) -> dict[str, Any]:
    """Texts, tokens and report for JSON."""
    report = {key: value if _is_finite(value) else None for key, value in output.report.as_dict().items()}
    return {"texts": output.texts, "tokens": [one.tolist() for one in output.sequences], "report": report}


def as_data(comparison: TextComparison) -> dict[str, Any]:
    """The numbers for JSON."""
    median, low, high = comparison.speedups
    timings = comparison.timings
    return {
        **{name: output_data(output) for name, output in comparison.outputs.items()},
        "rounds": len(timings[PLAIN].seconds),
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "median_seconds": {name: timing.median for name, timing in timings.items()},
        "tokens_per_second": {name: comparison.rate(name) for name in timings},
        "speedup": median,
        "speedup_range": [low, high],
        "equal": comparison.equal,
        "equal_tokens": comparison.equal_tokens,
    }


def as_text(comparison: TextComparison, prompts: Sequence[str]) -> str:
    """Both texts of each prompt, the numbers in a table, and whether the tokens are the same."""
    outputs, names = comparison.outputs, {PLAIN: PLAIN, FAST: comparison.name}
    width = max(map(len, names.values()))
    blocks = []
    for number, prompt in enumerate(prompts):
        texts = (f"{label:<{width}}  {outputs[name].texts[number]}" for name, label in names.items())
        blocks.append("\n".join([quoted(prompt), *texts]))
    numbers = table("", "forwards", "rows computed", "stored", "seconds", "tokens/s", "speed-up")
    for name, label in names.items():
        numbers.add_row(label, *_columns(comparison, name))
    rounds = len(comparison.timings[PLAIN].seconds)
    how = f"Speed: median of {rounds} rounds in turn after a warm-up, shortest to longest in brackets."
    if rounds == 1:
        how = "One run of each is no measurement of speed: add --rounds 5."
    same, total = sum(comparison.equal_tokens), sum(len(one) for one in outputs[PLAIN].sequences)
    equal = f"Equal tokens: {same} of {total}, in all of {sum(comparison.equal)} of {len(prompts)} texts."
    return "\n\n".join([*blocks, f"{render(numbers)}\n{how}\n{equal}"])


def quoted(prompt: str) -> str:
    """A prompt, told apart from its text."""
    return "\n".join(f"> {line}" for line in prompt.split("\n"))


def _columns(comparison: TextComparison, name: str) -> list[str]:
    report: TextReport = comparison.outputs[name].report
    timing, (median, low, high) = comparison.timings[name], comparison.speedups
    (shortest, longest), single = timing.spread, len(timing.seconds) == 1
    speedup = "" if name == PLAIN else f"{median:.2f}x" + ("" if single else f" ({low:.2f} to {high:.2f})")
    return [
        str(report.forwards),
        f"{report.rows} of {report.whole}",
        format_bytes(report.cache) if report.cache else "",
        f"{timing.median:.3f}" + ("" if single else f" ({shortest:.3f} to {longest:.3f})"),
        f"{comparison.rate(name):.1f}",
        speedup,
    ]


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
