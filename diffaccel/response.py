"""Responses: how far the last latent moves if the network's output at one step moves by one."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor

_UNIT = 1e-3  # small, so that schedulers that clip what they predict do not


def responses(scheduler: Any, answered: bool = False) -> list[float]:
    """The response to each step of a run, by driving a copy of the scheduler with unit outputs.

    The samplers of diffusers are linear in the outputs of the network, as long as nothing is clipped. So the response
    to a step is what the sampler makes of an output of 1 there and 0 elsewhere. Noise of samplers that add some is the
    same in all runs and cancels.

    A sampler of predicted noise by itself magnifies what goes wrong early: it scales the latent up until the end. A
    network that sees too large a latent takes it back. The best one for data of unit variance answers what it is given
    at noise level s (`sqrt(1 - alphas_cumprod)`) with s times as much noise. With predicted velocities its answers
    come to little, and none are taken.

    Args:
        scheduler: with the timesteps of a run set; it is not touched.
        answered: let such a network answer in all later steps, where noise is predicted.

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
    answers = _answers(fresh) if answered else [0.0] * steps
    still = _drive(fresh, None, answers)
    return [float((_drive(fresh, step, answers) - still) / _UNIT) for step in range(steps)]


def _answers(scheduler: Any) -> list[float]:
    """How much noise the best network for data of unit variance predicts per unit of its input, at each step."""
    kept = getattr(scheduler, "alphas_cumprod", None)
    if kept is None or scheduler.config.get("prediction_type", "epsilon") != "epsilon":
        return [0.0] * len(scheduler.timesteps)
    places = scheduler.timesteps.double().clamp(0, len(kept) - 1)
    noise = (1 - kept.double().cpu()).sqrt()
    low, high = noise[places.floor().long()], noise[places.ceil().long()]
    return list(torch.lerp(low, high, places.frac()).tolist())


def _drive(scheduler: Any, step: int | None, answers: list[float]) -> Tensor:
    """The last latent of a run from 0, by a copy of `scheduler`: outputs are small at `step` and 0 elsewhere, and to
    them comes what the network answers to the latent, as a share of it at each step."""
    fresh, generator = copy.deepcopy(scheduler), torch.Generator().manual_seed(0)
    takes_generator = "generator" in inspect.signature(fresh.step).parameters
    sample = torch.zeros(1, 1, 1, 1)
    for place, time in enumerate(fresh.timesteps):
        seen = fresh.scale_model_input(sample, time) if hasattr(fresh, "scale_model_input") else sample
        output = torch.full_like(sample, _UNIT if place == step else 0.0) + answers[place] * seen
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
