"""The denoisers of a pipeline or policy: the networks it calls at every step, and the clock of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffaccel.clock import Clock, PipelineClock
from diffaccel.compiled import is_compiled
from diffaccel.pipelines.policies import foreign
from diffaccel.query_clock import QueryClock

# Components under which pipelines keep the networks that are called at every step.
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
    "denoiser",
)


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The networks a pipeline or policy calls at every step, by name; empty if it has none.

    Raises:
        TypeError: a policy of another project whose network is not clear.
    """
    if foreign.recognised(pipe):
        return dict([foreign.network_of(pipe)])
    return {name: part for name in DENOISERS if isinstance(part := getattr(pipe, name, None), nn.Module)}


def clocks(pipe: Any) -> Mapping[str, Clock]:
    """The clock of each denoiser, by the denoiser's name; networks driven by one scheduler share one.

    Raises:
        TypeError: the pipeline has no denoiser, or no scheduler.
        ValueError: a policy of another project whose network is compiled.
    """
    if foreign.recognised(pipe):
        name, network = foreign.network_of(pipe)
        if is_compiled(network):
            raise ValueError(
                f"the {type(network).__name__} of this {type(pipe).__name__} is compiled, and policies that run a "
                "sampling loop of their own are accelerated uncompiled only"
            )
        return {name: QueryClock(foreign.entries_of(pipe))}
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
