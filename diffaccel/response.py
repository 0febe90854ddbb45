"""Responses: how far the last latent moves if the network's output at one step moves by one."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

_UNIT = 1e-3  # small, so that schedulers that clip what they predict do not


def responses(scheduler: Any) -> list[float]:
    """The response to each step of a run, by driving a copy of the scheduler with unit outputs.

    The samplers of diffusers are linear in the outputs of the network, as long as nothing is clipped. So the response
    to a step is what the sampler makes of an output of 1 there and 0 elsewhere. Noise of samplers that add some is the
    same in all runs and cancels.

    Args:
        scheduler: with the timesteps of a run set; it is not touched.

    Returns:
        One number per step, in units of the latent per unit of the output; for flow matching with Euler steps the
        widths of the steps.

    Raises:
        ValueError: the scheduler has no timesteps yet.
    """
    steps = 0 if getattr(scheduler, "num_inference_steps", None) is None else len(scheduler.timesteps)
    if not steps:
        raise ValueError(f"{type(scheduler).__name__} has no timesteps: run the pipeline once, or call set_timesteps")
    fresh = _copy(scheduler)
    still = _drive(fresh, None)
    return [float((_drive(fresh, step) - still) / _UNIT) for step in range(steps)]


def _drive(scheduler: Any, step: int | None) -> Tensor:
    """The last latent of a run from 0 whose outputs are small at `step` and 0 elsewhere; by a copy of `scheduler`."""
    fresh, generator = copy.deepcopy(scheduler), torch.Generator().manual_seed(0)
    takes_generator = "generator" in inspect.signature(fresh.step).parameters
    sample = torch.zeros(1, 1, 1, 1)
    for place, time in enumerate(fresh.timesteps):
        if hasattr(fresh, "scale_model_input"):
            fresh.scale_model_input(sample, time)
        output = torch.full_like(sample, _UNIT if place == step else 0.0)
        more = {"generator": generator} if takes_generator else {}
        sample = fresh.step(output, time, sample, return_dict=False, **more)[0]
    return sample.double().flatten()[0]


def _copy(scheduler: Any) -> Any:
    """A scheduler before its first step, with the same times."""
    fresh = type(scheduler).from_config(scheduler.config)
    shift = {"mu": 0.0} if scheduler.config.get("use_dynamic_shifting") else {}
    fresh.set_timesteps(scheduler.num_inference_steps, **shift)
    for name in ("timesteps", "sigmas"):
        if isinstance(times := getattr(scheduler, name, None), Tensor):
            setattr(fresh, name, times.cpu().clone())
    return fresh
