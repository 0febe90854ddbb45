"""The denoisers of a pipeline: the networks it calls at every step, and the clock of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffaccel.clock import Clock, PipelineClock

# Components under which diffusers pipelines keep the networks that are called at every step.
DENOISERS = (
    "transformer",
    "transformer_2",
    "unconditional_transformer",
    "unet",
    "image_unet",
    "text_unet",
    "prior",
    "prior_prior",
    "decoder",
    "super_res_first",
    "super_res_last",
)


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The networks a pipeline calls at every step, by name; empty if it has none."""
    return {name: part for name in DENOISERS if isinstance(part := getattr(pipe, name, None), nn.Module)}


def clocks(pipe: Any) -> Mapping[str, Clock]:
    """The clock of each denoiser, by the denoiser's name; networks driven by one scheduler share one.

    Raises:
        TypeError: the pipeline has no denoiser, or no scheduler.
    """
    schedulers = {name: _scheduler_of(pipe, name) for name in denoisers(pipe)}
    if not schedulers or None in schedulers.values():
        raise TypeError(
            f"{type(pipe).__name__} is no pipeline diffaccel can accelerate: it needs a scheduler and one of "
            f"{', '.join(DENOISERS)}"
        )
    made = {scheduler: PipelineClock(pipe, scheduler) for scheduler in schedulers.values() if scheduler is not None}
    return {name: made[scheduler] for name, scheduler in schedulers.items() if scheduler is not None}


def _scheduler_of(pipe: Any, name: str) -> str | None:
    """The attribute of the scheduler that drives the network `name`: its own, that of its kind, or the pipeline's."""
    own = (f"{name}_scheduler", f"{name.rpartition('_')[0]}_scheduler", "scheduler")
    others = [part for part in getattr(pipe, "components", {}) if part.endswith("_scheduler")]
    return next((part for part in (*own, *others) if getattr(pipe, part, None) is not None), None)
