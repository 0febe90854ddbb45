"""What is checked and done before a pipeline runs with a Dot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from diffaccel.morse.coordinates import Coordinates
from diffaccel.morse.probe import only_network
from diffaccel.morse.ratio import Ratio, measure_n, usual_call
from diffaccel.morse.schedulers import check_scheduler, warn_of_memory
from diffaccel.pipelines.policies import foreign
from diffaccel.structure import unwrapped


def check_pipeline(pipe: Any) -> nn.Module:
    """The one network of a pipeline, whose weights are within reach.

    Raises:
        ValueError: a policy with a loop of its own, several denoisers, or weights that are offloaded layer by layer.
    """
    if foreign.recognised(pipe):
        raise ValueError(
            f"Morse needs to know what the scheduler of {type(pipe).__name__} makes of an output, and that runs a loop "
            "of its own: put network, scheduler and normalizer into a PolicyPipeline, or use method='bac'"
        )
    network = only_network(pipe)
    if any(map(_offloaded, unwrapped(network).modules())):
        raise ValueError(
            f"the weights of this {type(unwrapped(network)).__name__} are offloaded layer by layer, and its Dot shares "
            "them: accelerate the pipeline without enable_sequential_cpu_offload and group offloading; "
            "enable_model_cpu_offload works"
        )
    return network


def loaded(dot: Any, network: nn.Module, scheduler: Any, guided: float | None) -> Any:
    """A Dot, from its folder or the hub if it is a path, attached to a network.

    Raises:
        ValueError: none was given, or it is for another network, kind of scheduler or guidance.
        OSError: there is no such Dot.
    """
    if dot is None:
        raise ValueError("Morse needs a Dot that was trained for this network: dot=folder (see diffaccel train-dot)")
    if isinstance(dot, str | Path):
        from diffaccel.morse.dot import MorseDot

        dot = MorseDot.from_pretrained(dot)
    config = dot.config
    if config.guided and guided is None:
        raise ValueError("this Dot was trained to correct the guided estimate: give guided=, your guidance scale")
    if guided is not None and not config.guided:
        raise ValueError("this Dot was trained to correct each branch of guidance: leave guided out")
    check_scheduler(scheduler, config.residual_space)
    Coordinates.of(scheduler, config.residual_space)  # for its errors
    dot.attach(unwrapped(network))
    # A network that is offloaded as a whole is uploaded for its first Dash step, and with it what Dot shares.
    if (device := getattr(getattr(unwrapped(network), "_hf_hook", None), "execution_device", None)) is not None:
        nn.Module.to(dot, device)
    warn_of_memory(scheduler, config.scheduler)
    return dot


def measured(pipe: Any, dot: Any) -> Ratio:
    """N, for the pipeline as it is called by default.

    Raises:
        ValueError: that cannot be told.
    """
    try:
        return measure_n(pipe, dot, **usual_call(pipe))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"N, how many times faster Dot is than Dash, could not be measured with a call of {type(pipe).__name__} by "
            f"its defaults ({error}): give ratio=diffaccel.morse.measure_n(pipe, dot, ...).n with the arguments of "
            "your own call, or dots_per_dash"
        ) from error


def _offloaded(module: nn.Module) -> bool:
    hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    return (
        any(parameter.is_meta for parameter in module.parameters(recurse=False))
        or bool(getattr(getattr(module, "_hf_hook", None), "offload", False) is True)
        or any("group_offloading" in name for name in hooks)
    )
