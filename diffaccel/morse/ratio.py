"""N, how many times faster Dot is than Dash, measured where and on what both are to run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from diffaccel.morse.budget import latency_ratio
from diffaccel.morse.coordinates import Coordinates
from diffaccel.morse.probe import Call, of_branch, only_network, probe
from diffaccel.morse.trajectory import beside, form_of, times_of
from diffaccel.pipelines.source import call_defaults
from diffaccel.timing import Stopwatch
from diffaccel.watch import check_free


@dataclass(frozen=True)
class Ratio:
    """Seconds of one denoising step by Dash and by Dot, all branches of guidance together, and N of them.

    Attributes:
        n: Dash's seconds over Dot's.
        dash_seconds: median of one step.
        dot_seconds: likewise.
        device: where it was measured, such as "cuda:0".
        dtype: of the sample, such as "bfloat16".
        batch: samples in a call of the network.
        shape: of one of them.
    """

    n: float
    dash_seconds: float
    dot_seconds: float
    device: str
    dtype: str
    batch: int
    shape: tuple[int, ...]


@torch.no_grad()
def measure_n(pipe: Any, dot: Any, rounds: int = 5, **call: Any) -> Ratio:
    """Time Dash and Dot in turns on the arguments of a real call of the pipeline, and take medians.

    Each runs once before, so that what is compiled or chosen at a first call is not counted.

    Args:
        pipe: a diffusers pipeline with one denoiser, not accelerated.
        dot: a Dot that is attached to its network.
        rounds: timed steps of each.
        call: arguments of the pipeline's call; size and number of pictures decide N.

    Raises:
        ValueError: rounds below 1, a pipeline that is accelerated or has several denoisers, or see
            `diffaccel.morse.probe.probe`.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    dash = only_network(pipe)
    check_free(dash)
    coordinates = Coordinates.of(pipe.scheduler, dot.config.residual_space)
    probed = probe(pipe, **call)
    both = (_dash_step(dash, probed.calls), _dot_step(dot, coordinates, dash, probed.calls, probed.size))
    watch, device = Stopwatch(), probed.calls[0].sample.device
    for i in range(rounds + 1):
        for kind, run in zip(("dash", "dot"), both, strict=True):
            watch.start(device)
            run()
            watch.stop(kind)
        if i == 0:
            _wait(device)
            watch.reset()
    seconds = {kind: median(found) for kind, found in watch.seconds().items()}
    sample = probed.calls[0].sample
    return Ratio(
        n=latency_ratio(seconds["dash"], seconds["dot"]),
        dash_seconds=seconds["dash"],
        dot_seconds=seconds["dot"],
        device=str(device),
        dtype=str(sample.dtype).removeprefix("torch."),
        batch=sum(len(one.sample) for one in probed.calls),
        shape=tuple(sample.shape[1:]),
    )


def usual_call(pipe: Any) -> dict[str, Any]:
    """Arguments with which a pipeline makes one picture: its call defaults, and an empty prompt, or the first class.

    Raises:
        ValueError: it has prompts, and no text encoder.
    """
    given = call_defaults(str(getattr(pipe, "name_or_path", "")))
    names = inspect.signature(type(pipe).__call__).parameters
    if "class_labels" in names:
        return {"class_labels": [0]} | given
    if "prompt" not in names:
        return given
    if getattr(pipe, "text_encoder", None) is None:
        raise ValueError(f"this {type(pipe).__name__} has no text encoder, and no prompt to be run with")
    return {"prompt": ""} | given


def _dash_step(dash: nn.Module, calls: Sequence[Call]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call(dash, call.sample, call.time)

    return run


def _dot_step(
    dot: Any, coordinates: Coordinates, dash: nn.Module, calls: Sequence[Call], size: int
) -> Callable[[], None]:
    """What a Dot step runs, coordinates included; a guided Dot runs once for both halves of a batch."""
    parts = [of_branch(call, len(call.sample) // size - 1, size) for call in calls] if dot.config.guided else calls
    given: list[tuple[Call, Tensor, Tensor, Tensor]] = []
    for part in parts:
        x, t = part.sample, times_of(part)
        z = form_of(part(dash, x, t), x)[0]
        given.append((part, x, t, coordinates.keep(z, beside(x, z), t)))

    def run() -> None:
        for part, x, t, k in given:
            coordinates.output(k + dot(x, t, x, k, t, part.conditioning), beside(x, k), t)

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
