"""What a search chose and what to expect of it: said in words, kept in a file, checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

from diffaccel.auto.quality import Quality
from diffaccel.auto.search import Target
from diffaccel.fingerprint import Fingerprint
from diffaccel.methods import Method
from diffaccel.plan import Plan
from diffaccel.trace import recordable

BUSY = 1.3
"""Contention from which on a machine is called busy."""


@dataclass(frozen=True)
class Speed:
    """Speed-up of whole calls over the full run, median over rounds with the lowest and the highest round.

    Attributes:
        clock: which time counts.
        rounds: number of rounds.
        pictures: a call makes.
    """

    median: float
    low: float
    high: float
    rounds: int
    clock: str
    pictures: int

    @classmethod
    def of(cls, shares: Sequence[float], clock: str, pictures: int) -> Speed:
        """From the part of the full run's time in each round."""
        return cls(1 / median(shares), 1 / max(shares), 1 / min(shares), len(shares), clock, pictures)


@dataclass(frozen=True)
class Plain:
    """The plain run of fewer steps that takes as long as the chosen method; `ratio` is its time over the method's."""

    steps: int
    quality: Quality
    speed: Speed
    ratio: float


@dataclass(frozen=True)
class Conditions:
    """What a choice holds for.

    Attributes:
        pipeline: class.
        steps: what the pipeline is called with.
        evaluations: of the network in a run.
        call: further arguments of the call, as plain data.
        networks: fingerprint of each network and its scheduler.
        device: where it was timed, such as "cpu" or the name of a GPU, and in which type of numbers.
    """

    pipeline: str
    steps: int
    evaluations: int
    call: Mapping[str, Any]
    networks: Mapping[str, Fingerprint]
    device: str

    @classmethod
    def of(cls, pipe: Any, steps: int, evaluations: int, level: str, call: Mapping[str, Any]) -> Conditions:
        """Those of a pipeline now."""
        marks = {
            name: Fingerprint.of(network, pipe.scheduler, evaluations, level)
            for name, network in recordable(pipe).items()
        }
        return cls(type(pipe).__name__, steps, evaluations, plain_data(call), marks, device_of(pipe))

    def differences(self, other: Conditions) -> list[str]:
        """What differs, in words; where it was timed does not count."""
        found = [
            f"{name} ({mine}, now {theirs})"
            for name, mine, theirs in (
                ("pipeline", self.pipeline, other.pipeline),
                ("number of steps", self.steps, other.steps),
                ("list of networks", ", ".join(self.networks), ", ".join(other.networks)),
            )
            if mine != theirs
        ]
        for name in self.networks.keys() & other.networks.keys():
            found += self.networks[name].differences(other.networks[name])
        for name in sorted(self.call.keys() | other.call.keys()):
            mine, theirs = self.call.get(name), other.call.get(name)
            if mine != theirs:
                found.append(f"argument {name} of the call ({mine!r}, now {theirs!r})")
        return found


@dataclass(frozen=True, eq=False)
class Choice:
    """An acceleration that was chosen, and what to expect of it.

    Attributes:
        target: what was to be reached.
        name: the method as the command line takes it.
        method: the method, with its calibration if it has one.
        plan: the steps it computes.
        quality: PSNR to the full run on prompts that were not learnt from.
        speed: of whole calls.
        plain: the plain run of fewer steps that takes as long.
        conditions: what all this holds for.
        contention: how much other work the machine had when it was timed, see `diffaccel.auto.bench.Timed`.
        tried: everything that was run, as plain data.
        environment: versions and machine.
    """

    target: Target
    name: str
    method: Method
    plan: Plan
    quality: Quality
    speed: Speed
    plain: Plain
    conditions: Conditions
    contention: float
    tried: Sequence[Mapping[str, Any]] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)

    @property
    def plain_is_better(self) -> bool:
        """Whether the plain run of fewer steps is nearer to the full run, and not slower by more than 3%."""
        return self.plain.quality.mean > self.quality.mean and self.plain.ratio <= 1.03

    def __repr__(self) -> str:
        """Short: it is part of what a method looks like written out."""
        return (
            f"<{self.name}: {self._steps}, expected {self.quality.mean:.1f} dB (worst of {self.quality.n} "
            f"{self.quality.worst:.1f}), {self.speed.median:.2f}x measured>"
        )

    def __str__(self) -> str:
        """The whole message."""
        lines = [
            f"auto chose {self.name} for {self.target}: {self._steps}, bound {self.plan.bound:.2f}x.",
            f"Expected: PSNR {self.quality} to the full run, on prompts it did not learn from; "
            f"{self.speed.median:.2f}x measured ({self.speed.low:.2f}x to {self.speed.high:.2f}x, median of "
            f"{self.speed.rounds} rounds of whole calls of {self.speed.pictures}, {self.speed.clock}).",
            f"A plain run of {self.plain.steps} steps takes {self.plain.ratio:.2f} times as long and reaches "
            f"{self.plain.quality.mean:.1f} dB"
            + (
                ": fewer plain steps are the better choice here, and need no acceleration."
                if self.plain_is_better
                else "."
            ),
        ]
        if self.contention >= BUSY:
            lines.append(
                f"The machine was busy with other work (factor {self.contention:.1f}): the speed-up may be another "
                "when it is idle."
            )
        return "\n".join(lines)

    @property
    def _steps(self) -> str:
        return f"{len(self.plan.computed())} of {self.plan.steps} steps"

    def check(self, pipe: Any, steps: int | None, call: Mapping[str, Any] | None) -> None:
        """Raise ValueError unless the choice was made for this pipeline, for so many steps and this call, if given."""
        own = self.conditions
        now = Conditions.of(
            pipe,
            own.steps if steps is None else steps,
            own.evaluations,
            self.method.level,
            own.call if call is None else call,
        )
        if found := own.differences(now):
            raise ValueError(
                f"auto chose {self.name} for another {' and another '.join(found)}: choose anew with "
                f"accelerate_pipeline(pipe, 'auto', {_asked(self.target)}, prompts=[...])"
            )

    def as_dict(self) -> dict[str, Any]:
        """All but the calibration, as plain data."""
        return {
            "target": asdict(self.target),
            "method": self.name,
            "plan": self.plan.computed(),
            "bound": self.plan.bound,
            "psnr": self.quality.as_dict(),
            "speedup": asdict(self.speed),
            "plain": asdict(self.plain) | {"is_better": self.plain_is_better},
            "conditions": asdict(self.conditions),
            "contention": self.contention,
            "tried": [dict(entry) for entry in self.tried],
            "environment": dict(self.environment),
        }


def works_on(pipe: Any) -> torch.device:
    """Where a pipeline computes, which offloaded ones do not do where their weights are kept."""
    device: torch.device = getattr(pipe, "_execution_device", pipe.device)
    return device


def device_of(pipe: Any) -> str:
    """Where a pipeline computes and in which type of numbers."""
    device, dtype = works_on(pipe), str(pipe.dtype).removeprefix("torch.")
    return f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}, {dtype}"


def plain_data(call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call as JSON keeps them."""
    data: dict[str, Any] = json.loads(json.dumps(dict(call), default=str, sort_keys=True))
    return data


def _asked(target: Target) -> str:
    return f"speedup={target.speedup:g}" if target.speedup is not None else f"psnr={target.psnr:g}"
