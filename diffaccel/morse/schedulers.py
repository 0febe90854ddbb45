"""Which schedulers a Dot can serve: by how often they ask, by the noise they add, and by what they remember."""

from __future__ import annotations

import copy
import logging
from typing import Any

from diffaccel.morse.coordinates import SAMPLE, is_flow

logger = logging.getLogger("diffaccel")

ADVICE = "use DDIMScheduler, EulerDiscreteScheduler or DPMSolverMultistepScheduler"

# Beside those that say so in their name (Ancestral) or their config (an SDE): they add noise at every step.
_NOISY = (
    "CMStochasticIterativeScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DDPMWuerstchenScheduler",
    "DPMSolverSDEScheduler",
    "FlowMatchLCMScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
)
# They use estimates of earlier steps.
_REMEMBERING = ("Multistep", "Singlestep", "PNDM", "LMS", "SASolver", "EDMDPM")


def check_scheduler(scheduler: Any, residual_space: str) -> None:
    """Raise ValueError unless a Dot that was trained in this residual space can serve a scheduler.

    That asks once a time, and once only, and adds noise if the Dot is of residual_space "sample", else none.
    """
    name = type(scheduler).__name__
    if getattr(scheduler, "order", 1) > 1:
        raise ValueError(
            f"{name} asks the network {scheduler.order} times a step, and Morse has no order for that: {ADVICE}"
        )
    if _repeats(scheduler):
        raise ValueError(f"{name} asks the network about one time twice, and Morse has no order for that: {ADVICE}")
    noisy = injects_noise(scheduler)
    if is_flow(scheduler):
        if noisy:
            raise ValueError(f"{name} adds noise at every step, in flow matching Morse is for those that add none")
        return
    if noisy and residual_space != SAMPLE:
        raise ValueError(
            f"{name} adds noise that an estimate of epsilon knows nothing of, and this Dot was trained to correct "
            "epsilon: use a scheduler without noise, such as DDIMScheduler, or a Dot of residual_space='sample'"
        )
    if not noisy and residual_space == SAMPLE:
        raise ValueError(
            "this Dot was trained to correct x0 (residual_space='sample') for a scheduler that adds noise, "
            f"{name} adds none: use DDPMScheduler, LCMScheduler or EulerAncestralDiscreteScheduler, or a Dot of "
            "residual_space='epsilon'"
        )


def warn_of_memory(scheduler: Any, trained: str) -> None:
    """Log a warning if a scheduler uses earlier estimates, unless the Dot was trained with it (`trained`, a class)."""
    name = type(scheduler).__name__
    if remembers(scheduler) and name != trained:
        logger.warning(
            "%s uses estimates of earlier steps, so what a Dot gets wrong comes back, and this Dot was not trained "
            "with it: compare with EulerDiscreteScheduler or DDIMScheduler",
            name,
        )


def injects_noise(scheduler: Any) -> bool:
    """Whether a scheduler adds noise at its steps. DDIM's eta, an argument of the call, is not seen."""
    name, config = type(scheduler).__name__, scheduler.config
    by_config = str(getattr(config, "algorithm_type", "")).startswith("sde") or getattr(
        config, "stochastic_sampling", False
    )
    return name in _NOISY or "Ancestral" in name or bool(by_config)


def remembers(scheduler: Any) -> bool:
    """Whether a scheduler uses estimates of earlier steps."""
    name, order = type(scheduler).__name__, getattr(scheduler.config, "solver_order", 2)
    return order > 1 and any(word in name for word in _REMEMBERING)


def _repeats(scheduler: Any) -> bool:
    """Whether one of its times comes twice in ten steps."""
    tried = copy.deepcopy(scheduler)
    more = {"mu": 1.0} if getattr(scheduler.config, "use_dynamic_shifting", False) else {}
    try:
        tried.set_timesteps(10, **more)
    except (AttributeError, TypeError, ValueError):  # it wants other arguments, which only its pipeline knows
        return False
    times = tried.timesteps.tolist()
    return len(set(times)) < len(times)
