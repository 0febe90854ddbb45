"""Which pipeline classes diffusers exports, and which of their components are denoisers: read off annotations."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from torch import nn

# Where diffusers keeps networks that may denoise; controlnets, adapters and autoencoders live elsewhere.
_HOMES = ("diffusers.models.transformers.", "diffusers.models.unets.")
_TIME = re.compile(r"^(t|r|.*timesteps?|timestep_.*|.*_time|sigma)$")
_BESIDE = re.compile(r"controlnet|adapter|vae|vocoder|encoder")


@cache
def needing_more() -> dict[str, str]:
    """Pipeline classes that want packages beyond torch and transformers, installed here or not: name to packages."""
    found: dict[str, set[str]] = {}
    for stubs in sorted(Path(inspect.getfile(diffusers)).parent.glob("utils/dummy_*_objects.py")):
        for name, packages in re.findall(r"class (\w+)\(.*?\n    _backends = \[(.*?)\]", stubs.read_text("utf8")):
            if "Pipeline" in name:
                found.setdefault(name, set()).update(re.findall(r'"(\w+)"', packages))
    return {
        name: ", ".join(more) for name in sorted(found) if (more := sorted(found[name] - {"torch", "transformers"}))
    }


@cache
def pipelines() -> dict[str, type[Any]]:
    """Every pipeline class that diffusers exports and that needs no further package, by name."""
    exported = [getattr(diffusers, name) for name in dir(diffusers) if name not in needing_more()]
    kinds = [kind for kind in exported if inspect.isclass(kind) and issubclass(kind, DiffusionPipeline)]
    return {kind.__name__: kind for kind in kinds if "__call__" in dir(kind)}


@cache
def components(pipeline: type[Any]) -> dict[str, tuple[type[nn.Module], ...]]:
    """The denoisers of a pipeline class: component name to the network classes its annotation allows."""
    hints = typing.get_type_hints(pipeline.__init__)
    found = {name: tuple(kind for kind in _classes(hint) if _denoises(name, kind)) for name, hint in hints.items()}
    return {name: kinds for name, kinds in found.items() if kinds}


@cache
def schedulers(pipeline: type[Any]) -> dict[str, type[Any] | None]:
    """The schedulers of a pipeline class: component name to the first class its annotation names, None if none."""
    hints = typing.get_type_hints(pipeline.__init__)
    names = [name for name in hints if name == "scheduler" or name.endswith("_scheduler")]
    known = {name: [kind for kind in _classes(hints[name]) if "set_timesteps" in dir(kind)] for name in names}
    return {name: next(iter(kinds), None) for name, kinds in known.items()}


@cache
def denoisers() -> dict[str, type[nn.Module]]:
    """Every network class that denoises in some pipeline, by name."""
    found = {
        kind.__name__: kind for pipe in pipelines().values() for kinds in components(pipe).values() for kind in kinds
    }
    return dict(sorted(found.items()))


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
