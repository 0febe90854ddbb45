"""The two calls users make, and the handle they get."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from diffaccel.branch_session import BranchSession
from diffaccel.clock import Clock
from diffaccel.denoisers import clocks, denoisers
from diffaccel.dlm.attaching import attach, writes_text
from diffaccel.gate import GatedSession
from diffaccel.handle import Handle
from diffaccel.methods import Calibrated, Method, of_network, resolve, resolve_text
from diffaccel.methods.first_block import FirstBlock
from diffaccel.methods.innovation import Innovation
from diffaccel.methods.morse import Morse
from diffaccel.morse.sampler import MorseSession
from diffaccel.pairs import PairSession
from diffaccel.pipelines.policies import foreign
from diffaccel.plan import Plan
from diffaccel.query_clock import QueryClock
from diffaccel.report import Report
from diffaccel.session import Session
from diffaccel.sites import BRANCH
from diffaccel.watch import check_free

Pipeline = TypeVar("Pipeline")
Chosen = str | Path | Method | Any  # what stands for a method; Any for the configurations of diffusers


class Acceleration(Handle):
    """The handle of an acceleration: what it plans, what it did, and the way to take it off.

    As a context manager it removes itself at the end.

    Attributes:
        method: the method with all its options.
        networks: names of the accelerated networks.
    """

    def __init__(
        self, method: Method, networks: Mapping[str, nn.Module], clocks: Mapping[str, Clock], pipe: Any = None
    ) -> None:
        self.method = method
        self._clocks, self._pipe = clocks, pipe
        # Everything that can be refused is refused here, before anything is attached.
        kind = _session_of(method)
        self._sessions = {
            name: kind(network, of_network(method, name), clocks[name]) for name, network in networks.items()
        }
        for session in self._sessions.values():
            session.attach()
        if pipe is not None:
            pipe.acceleration = self

    @property
    def networks(self) -> list[str]:
        """Names of the accelerated networks."""
        return list(self._sessions)

    @property
    def plan(self) -> Plan:
        """The plan of the last run; before the first, that of a run with the pipeline's default number of steps.

        Raises:
            NotPlannedError: before the first run, of a method that decides while it runs.
        """
        session = next(iter(self._sessions.values()))
        return session.plan or self.method.plan(session.sites, self.num_inference_steps)

    @property
    def num_inference_steps(self) -> int:
        """The number of steps to call the pipeline with: that of the method's budget, else the pipeline's default."""
        return getattr(self.method, "num_inference_steps", None) or self._expected_steps()

    def session(self, network: str | None = None) -> Session | MorseSession:
        """What watches one network (default: the first). Raises KeyError if none has that name."""
        return self._sessions[network or self.networks[0]]

    def report(self, network: str | None = None) -> Report:
        """What the last run computed and skipped, its time and memory, for one network (default: the first).

        Raises:
            KeyError: no accelerated network has that name.
        """
        return self.session(network).report()

    def remove(self) -> None:
        """Put everything back as it was. Calling it again does nothing."""
        for session in self._sessions.values():
            session.detach()
        for clock in self._clocks.values():
            clock.detach()
        if self._pipe is not None and vars(self._pipe).get("acceleration") is self:
            del self._pipe.acceleration

    def _expected_steps(self) -> int:
        if (known := getattr(self.method, "evaluations", None)) is not None:  # it was chosen for so many
            return int(known)
        if self._pipe is None:
            return next(iter(self._clocks.values())).steps
        if isinstance(steps := getattr(self._pipe, "default_steps", None), int):
            return steps
        default = inspect.signature(type(self._pipe).__call__).parameters.get("num_inference_steps")
        return default.default if default is not None and isinstance(default.default, int) else 50

    def __str__(self) -> str:
        return "\n".join(str(session.report()) for session in self._sessions.values())


def _session_of(method: Method) -> type[Session | MorseSession]:
    if isinstance(method, FirstBlock):
        return GatedSession
    if isinstance(method, Innovation):
        return PairSession
    if isinstance(method, Morse):
        return MorseSession
    return BranchSession if method.level == BRANCH else Session


def accelerate_pipeline(pipe: Pipeline, method: Chosen = "taylorseer", **options: Any) -> Pipeline:
    """Accelerate a diffusers pipeline, or a diffusion policy, in place.

    `pipe.acceleration` then holds the handle: `.plan`, `.report()`, `.remove()`.

    Args:
        pipe: a diffusers pipeline with a scheduler and a transformer or UNet; a
            `diffaccel.pipelines.policy.PolicyPipeline`; a policy of lerobot's, real-stanford/diffusion_policy's or
            RDT's kind, whose own methods (`select_action`, `predict_action`) are then faster; or a
            `diffaccel.pipelines.text.TextDiffusionPipeline` or diffusers' `LLaDA2Pipeline`, for which there are methods
            of their own.
        method: a name in `diffaccel.METHODS`, which takes the preset of the pipeline's class; a word in
            `diffaccel.SPEEDS`; a file of `diffaccel.save_config`; diffusers' `TaylorSeerCacheConfig` or
            `FirstBlockCacheConfig`; or an instance.
        **options: fields of the method, such as `interval=6`.

    Returns:
        The same pipeline.

    Raises:
        TypeError: no diffusers pipeline, or an option the method does not have.
        FileNotFoundError: there is no such file.
        ValueError: an unknown method or value, a network that is accelerated already or has no site, a configuration
            that cannot be had here, or a calibration that is missing or of another pipeline. The pipeline is as it was
            before.
    """
    if isinstance(pipe, nn.Module) and not foreign.recognised(pipe):
        raise TypeError(
            f"{type(pipe).__name__} is a network, not a pipeline: use diffaccel.accelerate(network, method, steps=...)"
        )
    if writes_text(pipe):
        attach(pipe, resolve_text(method, type(pipe).__name__, options))
        return pipe
    networks, ticking = denoisers(pipe), clocks(pipe)
    chosen = resolve(method, type(pipe).__name__, options)
    for network in networks.values():
        check_free(network)
    if isinstance(chosen, Calibrated):
        chosen = chosen.calibrated(pipe)
    for clock in ticking.values():
        if isinstance(clock, QueryClock):
            clock.calls = getattr(chosen, "evaluations", None)
    Acceleration(chosen, networks, ticking, pipe)
    return pipe


def accelerate(module: nn.Module, method: Chosen = "taylorseer", *, steps: int, **options: Any) -> Acceleration:
    """Accelerate a bare network that a loop of your own calls `steps` times a run, with a timestep among its arguments.

    Args:
        module: the network.
        method: as for `accelerate_pipeline`; presets are those of pipelines, so a name has the defaults.
        steps: timesteps a run visits.
        **options: fields of the method.

    Returns:
        The handle; `with accelerate(...) as acceleration:` removes it at the end.

    Raises:
        TypeError: no network, a network that takes no timestep, an option the method does not have, or a method that
            needs a pipeline to learn from.
        ValueError: an unknown method or value, a network that is accelerated already or has no site.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"{type(module).__name__} is no network: pipelines go to diffaccel.accelerate_pipeline(pipe, method)"
        )
    chosen = resolve(method, type(module).__name__, options)
    if isinstance(chosen, Calibrated):
        raise TypeError(
            f"{type(chosen).__name__} learns from runs of a pipeline: use diffaccel.accelerate_pipeline(pipe, method)"
        )
    name = type(module).__name__
    return Acceleration(chosen, {name: module}, {name: Clock(steps)})
