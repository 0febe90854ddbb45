"""Tuning: which anchors and which feedback suit an interval, found by running the pipeline, since errors feed back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.acceleration import accelerate_pipeline
from diffaccel.evaluation.subject import latents_of
from diffaccel.methods.fitted import Fitted
from diffaccel.metrics.parity import relative_l2
from diffaccel.pipelines import image
from diffaccel.trace import Trace

CHOICES = ((2, 0.0), (3, 0.0), (3, 0.25), (3, 0.5), (3, 0.75))
"""Anchors and feedback that are tried."""


def tune(
    pipe: Any,
    trace: Trace,
    prompts: Sequence[str],
    intervals: Sequence[int],
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **arguments: Any,
) -> Trace:
    """The trace with the best of `CHOICES` for each interval, by the latents of these prompts.

    Args:
        pipe: the pipeline the trace is of; it is left as it was.
        trace: of level "model".
        prompts: drawn in one call of the pipeline, once in full and once for each choice and interval.
        intervals: those to tune for.
        steps: what the pipeline is called with; as many as the trace has if None. Solvers that evaluate the network
            twice a step have more of them.
        seed: of the first picture.
        progress: show a progress bar.
        **arguments: further arguments of `diffaccel.pipelines.image.pictures`.

    Returns:
        A copy, with notes["tuned"] by interval: "anchors", "feedback", and "relative_l2" of all choices.
    """
    steps = steps or trace.steps
    full = _latents(pipe, prompts, seed, steps, arguments)
    tuned: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(intervals) * len(CHOICES), desc="tuning", unit="run", disable=not progress) as bar:
        for interval in intervals:
            errors = []
            for anchors, feedback in CHOICES:
                method = Fitted(interval=interval, anchors=anchors, feedback=feedback, calibration=trace)
                accelerate_pipeline(pipe, method)
                try:
                    errors.append(float(relative_l2(_latents(pipe, prompts, seed, steps, arguments), full).mean()))
                finally:
                    pipe.acceleration.remove()
                bar.update()
            best = CHOICES[errors.index(min(errors))]
            tuned[str(interval)] = {"anchors": best[0], "feedback": best[1], "relative_l2": errors}
    return replace(trace, notes={**trace.notes, "tuned": tuned})


def _latents(pipe: Any, prompts: Sequence[str], seed: int, steps: int, arguments: Mapping[str, Any]) -> Tensor:
    with latents_of(pipe) as kept, torch.no_grad():
        image.pictures(pipe, prompts, [seed + i for i in range(len(prompts))], steps, **arguments)
    return kept[-1][: len(prompts)].float().cpu()
