"""Which pipeline classes diffusers exports, and which of their components are denoisers: read off annotations."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from torch import nn

# Where diffusers keeps networks that may denoise; controlnets, adapters and autoencoders live elsewhere.
_HOMES = ("diffusers.models.transformers.", "diffusers.models.unets.")
_TIME = re.compile(r"^(t|r|.*timesteps?|timestep_.*|.*_time|sigma)$")
_BESIDE = re.compile(r"controlnet|adapter|vae|vocoder|encoder")


@cache
def pipelines() -> dict[str, type[Any]]:
    """Every pipeline class that diffusers exports and that can be called, by name."""
    names = [name for name in dir(diffusers) if not name.startswith("_")]
    found = {name: kind for name in names if inspect.isclass(kind := getattr(diffusers, name))}
    return {
        kind.__name__: kind
        for kind in found.values()
        if issubclass(kind, DiffusionPipeline) and "__call__" in dir(kind)
    }


@cache
def components(pipeline: type[Any]) -> dict[str, tuple[type[nn.Module], ...]]:
    """The denoisers of a pipeline class: component name to the network classes its annotation allows."""
    hints = typing.get_type_hints(pipeline.__init__)
    found = {name: tuple(kind for kind in _classes(hint) if _denoises(name, kind)) for name, hint in hints.items()}
    return {name: kinds for name, kinds in found.items() if kinds}


@cache
def denoisers() -> dict[str, type[nn.Module]]:
    """Every network class that denoises in some pipeline, by name."""
    found = {
        kind.__name__: kind for pipe in pipelines().values() for kinds in components(pipe).values() for kind in kinds
    }
    return dict(sorted(found.items()))


def scheduler_of(pipeline: type[Any]) -> type[Any] | None:
    """The first scheduler class that the annotation of `scheduler` allows, if it names one."""
    hint = typing.get_type_hints(pipeline.__init__).get("scheduler")
    return next((kind for kind in _classes(hint) if hasattr(kind, "from_config")), None)


def _classes(hint: Any) -> Iterator[type[Any]]:
    """The classes in an annotation: itself, or the members of a union."""
    for part in typing.get_args(hint) or (hint,):
        if inspect.isclass(part):
            yield part


def _denoises(component: str, kind: type[Any]) -> bool:
    """Whether a component of this name and class is a network that is called at every step."""
    if not issubclass(kind, nn.Module) or not kind.__module__.startswith("diffusers."):
        return False
    timed = any(_TIME.match(name) for name in inspect.signature(kind.forward).parameters)
    return not _BESIDE.search(component) and (timed or kind.__module__.startswith(_HOMES))
