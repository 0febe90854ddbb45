"""Tuning: which anchors and which feedback suit a number of computed steps, found by runs, since errors feed back."""

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

CHOICES = ((2, 0.0), (3, 0.0), (3, 0.25), (3, 0.5))
"""Anchors and feedback that are tried."""


def tune(
    pipe: Any,
    trace: Trace,
    prompts: Sequence[str],
    counts: Sequence[int],
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **arguments: Any,
) -> Trace:
    """The trace with the best of `CHOICES` for each number of computed steps, by the latents of these prompts.

    Args:
        pipe: the pipeline the trace is of; it is left as it was.
        trace: of level "model".
        prompts: drawn in one call of the pipeline, once in full and once for each choice and number.
        counts: numbers of computed steps to tune for.
        steps: what the pipeline is called with; as many as the trace has if None. Solvers that evaluate the network
            twice a step have more of them.
        seed: of the first picture.
        progress: show a progress bar.
        **arguments: further arguments of `diffaccel.pipelines.image.pictures`.

    Returns:
        A copy, with notes["tuned"] by number of computed steps: "anchors", "feedback", "relative_l2" of all choices.
    """
    steps = steps or trace.steps
    full = _latents(pipe, prompts, seed, steps, arguments)
    tuned: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(counts) * len(CHOICES), desc="tuning", unit="run", disable=not progress) as bar:
        for count in counts:
            errors = []
            for anchors, feedback in CHOICES:
                method = Fitted(computed=count, anchors=anchors, feedback=feedback, calibration=trace)
                accelerate_pipeline(pipe, method)
                try:
                    errors.append(float(relative_l2(_latents(pipe, prompts, seed, steps, arguments), full).mean()))
                finally:
                    pipe.acceleration.remove()
                bar.update()
            best = CHOICES[errors.index(min(errors))]
            tuned[str(count)] = {"anchors": best[0], "feedback": best[1], "relative_l2": errors}
    return replace(trace, notes={**trace.notes, "tuned": tuned})


def _latents(pipe: Any, prompts: Sequence[str], seed: int, steps: int, arguments: Mapping[str, Any]) -> Tensor:
    with latents_of(pipe) as kept, torch.no_grad():
        image.pictures(pipe, prompts, [seed + i for i in range(len(prompts))], steps, **arguments)
    return kept[-1][: len(prompts)].float().cpu()
