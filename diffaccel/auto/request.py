"""What a search is asked for, checked before any long work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffaccel.auto.candidates import levels_of
from diffaccel.auto.search import Target
from diffaccel.descriptors import LEAST_STEPS
from diffaccel.pipelines import image
from diffaccel.pipelines.source import call_defaults
from diffaccel.trace import recordable

if TYPE_CHECKING:
    from diffaccel.methods.auto import Auto

_OURS = ("prompt", "class_labels", "generator", "latents", "output_type", "return_dict", "num_inference_steps")


@dataclass(frozen=True)
class Request:
    """What a search is asked for.

    Attributes:
        target: what is to be reached.
        steps: what the pipeline is called with.
        arguments: further arguments of its call.
        levels: of sites that are tried.
    """

    target: Target
    steps: int
    arguments: Mapping[str, Any]
    levels: tuple[str, ...]

    @classmethod
    def of(cls, pipe: Any, auto: Auto) -> Request:
        """The request of a method for a pipeline.

        Raises:
            TypeError: a pipeline without network or scheduler, or prompts of another kind.
            ValueError: a pipeline that makes no pictures from prompts or classes, too few steps, a speed-up that no
                plan has, or an argument or level the pipeline does not have.
        """
        networks, kind = recordable(pipe), type(pipe)
        if hasattr(pipe, "video_processor"):
            raise ValueError(f"auto judges pictures, and {kind.__name__} makes videos: choose a method by hand")
        image.check_arguments(kind, [])
        steps = image.denoising_steps(kind, call_defaults(str(pipe.name_or_path)), auto.steps)
        target = check_target(auto, steps)
        present = levels_of(networks)
        if missing := set(auto.levels or present) - set(present):
            raise ValueError(f"{kind.__name__} has no sites at level {min(missing)!r}: it has {', '.join(present)}")
        if not present:
            raise ValueError(f"auto finds no blocks in the networks of {kind.__name__}, so nothing could be skipped")
        levels = tuple(level for level in present if level in (auto.levels or present))
        return cls(target, steps, arguments_of(pipe, auto.call), levels)


def arguments_of(pipe: Any, call: Mapping[str, Any] | None) -> dict[str, Any]:
    """All arguments of a call besides prompts, noise and steps.

    Raises:
        ValueError: an argument the pipeline's call does not take, or one that is told otherwise.
    """
    if taken := set(call or {}) & set(_OURS):
        raise ValueError(f"call must not hold {min(taken)}: prompts=[...] and steps= say what is drawn, and how long")
    arguments = image.call_arguments(pipe, **(call or {}))
    return {name: value for name, value in arguments.items() if name != "num_inference_steps"}


def check_target(auto: Auto, steps: int) -> Target:
    """What is to be reached in runs of `steps` steps.

    Raises:
        ValueError: too few steps to learn from, or a speed-up that no plan has.
    """
    if steps < LEAST_STEPS:
        raise ValueError(f"auto needs runs of at least {LEAST_STEPS} steps to learn from, got {steps}")
    if auto.speedup is not None and auto.speedup >= steps:
        raise ValueError(
            f"a speed-up of {auto.speedup:g}x is out of reach: a run of {steps} steps computes at least one of them, "
            f"so no plan gains {steps}x"
        )
    return Target(auto.speedup, auto.psnr)
