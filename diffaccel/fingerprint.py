"""Fingerprints: which network, scheduler and number of steps a recording is of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

_VALUES = 16  # read of each weight
_SPOKEN = {
    "network": "network class",
    "config": "network config",
    "weights": "weights",
    "scheduler": "scheduler class",
    "scheduler_config": "scheduler config",
    "steps": "number of steps",
    "level": "level of sites",
}


@dataclass(frozen=True)
class Fingerprint:
    """What statistics of features depend on.

    Attributes:
        network: class of the denoiser.
        config: digest of its config.
        weights: digest of the names and shapes of its weights and of 16 values of each, in bfloat16, so that one model
            in several precisions has one digest; "" where weights are offloaded out of reach, which matches all.
        scheduler: class of the scheduler.
        scheduler_config: digest of its config.
        steps: evaluations of the denoiser in a run.
        level: level of sites, see `diffaccel.sites`.
    """

    network: str
    config: str
    weights: str
    scheduler: str
    scheduler_config: str
    steps: int
    level: str

    @classmethod
    def of(cls, network: nn.Module, scheduler: Any, steps: int, level: str) -> Fingerprint:
        """The fingerprint of runs of `steps` steps."""
        return cls(
            network=type(network).__name__,
            config=config_digest(network),
            weights=weights_digest(network),
            scheduler=type(scheduler).__name__,
            scheduler_config=config_digest(scheduler),
            steps=steps,
            level=level,
        )

    def differences(self, other: Fingerprint) -> list[str]:
        """What differs, in words: "number of steps (28, now 50)". Empty if nothing does."""
        found = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs and not (field.name == "weights" and "" in (mine, theirs)):
                found.append(f"{_SPOKEN[field.name]} ({mine}, now {theirs})")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def config_digest(part: Any) -> str:
    """Digest of the config of a diffusers network or scheduler, what libraries note of themselves aside."""
    config: Mapping[str, Any] = getattr(part, "config", None) or {}
    public = {str(name): value for name, value in dict(config).items() if not str(name).startswith("_")}
    return _digest(json.dumps(public, sort_keys=True, default=_plain).encode())


def weights_digest(network: nn.Module) -> str:
    """Digest of names, shapes and a sample of the weights; "" if any of them is on the meta device."""
    hasher = hashlib.sha256()
    for name, parameter in network.named_parameters():
        weight = parameter.detach()
        if weight.is_meta:
            return ""
        hasher.update(f"{name} {tuple(weight.shape)}".encode())
        # Quantized weights are classes of their own, or whole numbers: those count by name and shape.
        if type(weight) is Tensor and weight.is_floating_point() and weight.element_size() > 1:
            flat = weight.reshape(-1)
            read = min(_VALUES, len(flat))
            places = torch.arange(read, device=flat.device) * len(flat) // max(read, 1)
            values = flat[places].to("cpu", torch.bfloat16)
            hasher.update(values.view(torch.int16).numpy().tobytes())
    return hasher.hexdigest()[:16]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
