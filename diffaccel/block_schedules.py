"""Schedules of blocks: found for a pipeline, checked, written down, and turned into plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from diffaccel.branches import layers
from diffaccel.calibration_runs import default_steps
from diffaccel.denoisers import denoisers
from diffaccel.methods.first_block import NotPlannedError
from diffaccel.pipelines.policies import foreign
from diffaccel.plan import Plan
from diffaccel.schedule_file import BlockSchedules
from diffaccel.sites import BRANCH, sites

_HOW = "give calibration=observations (prompts for pictures), or a file that `schedules.save(path)` wrote"
_NOT_SETTINGS = ("calibration", "schedules")


def found(method: Any, pipe: Any) -> BlockSchedules:
    """The schedules of a method for a pipeline: its own, those of its calibration, or made from it.

    Raises:
        ValueError: no calibration, a pipeline with two denoisers, or schedules that do not fit it.
        FileNotFoundError: there is no such file.
    """
    (network,) = check_single(pipe).values()
    source = given(method)
    if source is None and method.calibration is None:
        raise ValueError(_missing(method))
    names = [site.name for site in sites(network, BRANCH)]
    if source is not None:
        # Pictures are drawn in as many steps as each call says, which the plan of its run is checked against.
        steps = getattr(pipe, "default_steps", source.steps)
        source.check(names, steps, type(network).__name__, width(network), scheduler_name(pipe))
        return source
    steps = default_steps(pipe)
    if steps is not None:
        check_updates(method.updates, steps)
    return method.made(pipe)  # type: ignore[no-any-return]


def given(method: Any) -> BlockSchedules | None:
    """The schedules a method has, itself or as its calibration; None if it is to make them.

    Raises:
        ValueError: they are in a file that cannot be used.
        FileNotFoundError: there is no such file.
    """
    source = method.schedules if method.schedules is not None else method.calibration
    if isinstance(source, str | Path) and Path(source).suffix == ".json":
        return BlockSchedules.load(source)
    return source if isinstance(source, BlockSchedules) else None


def _missing(method: Any) -> str:
    return f"{type(method).__name__} learns its schedules from the pipeline: {_HOW}"


def check_updates(updates: int, steps: int) -> None:
    """Raise ValueError if there are more updates than steps."""
    if updates > steps:
        raise ValueError(f"updates={updates} is more than the {steps} network calls of a run: choose fewer")


def check_single(pipe: Any) -> dict[str, Any]:
    """The one denoiser of a pipeline, by name. Raises ValueError if it has two."""
    networks = denoisers(pipe)
    if len(networks) != 1:
        raise ValueError(f"schedules of blocks are made for one network, this pipeline has {', '.join(networks)}")
    return networks


def written(
    method: Any,
    pipe: Any,
    rows: Mapping[str, Sequence[int]],
    steps: int,
    losses: Mapping[str, float] | None = None,
) -> BlockSchedules:
    """Schedules with all that is needed to tell where they belong and how they were made.

    Args:
        method: by which they were made.
        pipe: for which they were made.
        rows: computed steps of each block.
        steps: network calls of a run.
        losses: of each block, by which the bubbling union chose.
    """
    from diffaccel.methods.bac import worst_blocks

    (network,) = check_single(pipe).values()
    names = [field.name for field in dataclasses.fields(method) if field.name not in _NOT_SETTINGS]
    return BlockSchedules(
        rows={name: tuple(row) for name, row in rows.items()},
        steps=steps,
        rule=type(method).__name__.lower(),
        settings={name: getattr(method, name) for name in names},
        losses=losses,
        bubbled=() if losses is None else tuple(worst_blocks(losses, list(rows), getattr(method, "bubbling", 0))),
        network=type(network).__name__,
        layers=len(layers(network)),
        width=width(network),
        scheduler=scheduler_name(pipe),
    )


def width(network: nn.Module) -> int:
    """Size of a token, by what the first linear layer of the first layer takes in; 0 if there is none."""
    first = layers(network)[0].module
    return next((module.in_features for module in first.modules() if isinstance(module, nn.Linear)), 0)


def scheduler_name(pipe: Any) -> str:
    """Class name of what a pipeline or policy samples with."""
    return foreign.sampler_of(pipe) if foreign.recognised(pipe) else type(pipe.scheduler).__name__


def planned(method: Any, names: Sequence[str], steps: int) -> Plan:
    """The plan of a method for a run of so many steps over blocks of these names.

    Raises:
        NotPlannedError: the method has no schedules yet.
        ValueError: they are for other blocks or another number of steps.
    """
    schedules = given(method)
    if schedules is None:
        raise NotPlannedError(_missing(method))
    schedules.check(names, steps)
    last = {steps - 1} if method.always_update_last else set()
    computed = [last.union(schedules.rows[name]) for name in names]
    return Plan(tuple(tuple(step in row for step in range(steps)) for row in computed))
