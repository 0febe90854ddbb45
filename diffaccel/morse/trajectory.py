"""What a Dot step knows of its trajectory: the last Dash step of the same guidance branch, and what that was given."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from diffaccel.morse.probe import Call

# Arguments that have the size of Dash's features, or tell its blocks to do something else.
_ONLY_DASH = re.compile("additional_residual|controlnet_")
ASIDE = "skip_layers"
"""The argument of calls beside the branches of guidance (SD3's skip-layer guidance), in which Morse takes no part."""

# Why Dash runs at a step that is planned for Dot.
FIRST = "the first call of its branch"
SHAPE = "another shape, dtype or device"
CONDITIONING = "changed conditioning"
ARGUMENTS = "arguments only Dash takes"
TIME = "a time that does not fall"
GAP = "a gap above max_gap"
GUIDANCE = "guidance switched off"


class Conditioning:
    """What a call was given beside sample and time, to be compared with later calls.

    Pipelines give the same tensors at every step. One that is made anew is compared by value, for which a GPU has to be
    waited for.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        leaves, self.structure = tree_flatten(dict(given))
        # An alias lets the caller's tensor go, by whose end `Branches` tells that there will be another one.
        self.leaves = [
            (weakref.ref(leaf), leaf.detach(), _version(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]

    def __eq__(self, other: object) -> bool:
        raise TypeError("compare with what is given: conditioning.differs(given)")

    def differs(self, given: Mapping[str, Any]) -> bool:
        """Whether a call is given anything else."""
        leaves, structure = tree_flatten(dict(given))
        return structure != self.structure or any(map(_differ, self.leaves, leaves))


@dataclass(frozen=True, eq=False)
class DashStep:
    """The trajectory information of one branch: the last Dash step.

    Attributes:
        step: its index.
        x: the sample Dash was given [B, ...].
        t: the time it was given [B].
        k: what is kept of its estimate.
        time: `t` as the pipeline gave it.
        size: samples in the call, twice B where two halves are corrected as one.
        conditioning: what else the call was given.
        output: makes of an estimate [size, ...] an output of Dash's form.
        before: the Dash step before this one, if both are of one kind.
    """

    step: int
    x: Tensor
    t: Tensor
    k: Tensor
    time: Any
    size: int
    conditioning: Conditioning
    output: Callable[[Tensor], Any]
    before: DashStep | None = None

    def base(self, step: int, rule: str) -> Tensor:
        """What a Dot of zero would keep: what Dash said last, or ("taylor") the line through its last two estimates."""
        if rule != "taylor" or self.before is None:
            return self.k
        weight = (step - self.before.step) / (self.step - self.before.step)
        return torch.lerp(self.before.k, self.k, weight)

    def after(self, last: DashStep | None) -> DashStep:
        """This step as the one that follows `last` in the same branch."""
        return self if last is None else replace(self, before=replace(last, before=None))

    def against(self, call: Call) -> str | None:
        """Why this step says nothing of a later call; None if it does."""
        if only_dash(call):
            return ARGUMENTS
        x = call.sample
        if (len(x), *x.shape[1:]) != (self.size, *self.x.shape[1:]) or (x.dtype, x.device) != (
            self.x.dtype,
            self.x.device,
        ):
            return SHAPE
        if self.conditioning.differs(call.conditioning):
            return CONDITIONING
        on_host = not isinstance(call.time, Tensor) or call.time.device.type == "cpu"
        return TIME if on_host and self.gap(call) <= 0 else None

    def gap(self, call: Call) -> float:
        """How far the time of a later call lies below this step's; a time on a GPU has to be waited for."""
        return _number(self.time) - _number(call.time)

    @property
    def bytes(self) -> int:
        """Memory of sample and estimates."""
        return sum(part.nbytes for part in (self.x, self.t, self.k)) + (self.before.bytes if self.before else 0)


def only_dash(call: Call) -> bool:
    """Whether a call has arguments, such as the residuals of a ControlNet, that a Dot cannot take."""
    return any(value is not None and _ONLY_DASH.search(name) for name, value in call.conditioning.items())


def form_of(output: Any, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The estimate in a network's output, and what makes an output of the same form of another estimate.

    Channels beyond those of the sample `x`, a learned variance, are no part of the estimate and are repeated.

    Raises:
        ValueError: the first part of the output is no tensor.
    """
    make: Callable[[Tensor], Any]
    if isinstance(output, Mapping):
        name, rest = next(iter(output)), dict(output)
        found, make = output[name], lambda z: type(output)(**{**rest, name: z})
    elif isinstance(output, tuple) and output:
        found, make = output[0], lambda z: (z, *output[1:])
    else:
        found, make = output, lambda z: z
    if not isinstance(found, Tensor):
        raise ValueError(f"Morse is for networks whose output is one tensor, this one returns {type(found).__name__}")
    axis = channel_axis(x)
    channels = min(found.shape[axis], x.shape[axis])
    z = found.narrow(axis, 0, channels)
    if channels == found.shape[axis]:
        return z, make
    variance = found.narrow(axis, channels, found.shape[axis] - channels).clone()
    return z, lambda z: make(torch.cat([z, variance], axis))


def beside(x: Tensor, z: Tensor) -> Tensor:
    """Those channels of a sample that an estimate is of: masks and masked pictures of inpainting come after them."""
    axis = channel_axis(x)
    return x.narrow(axis, 0, z.shape[axis])


def times_of(call: Call) -> Tensor:
    """The time of a call, one a sample [B]; where the network is given more, all of them."""
    x = call.sample
    time = torch.as_tensor(call.time, device=x.device)
    return (time[: len(x)] if time.ndim else time).expand(len(x), *time.shape[1:])


def channel_axis(x: Tensor) -> int:
    """Where the channels of a sample are: behind the batch in pictures and videos, last in tokens."""
    return 1 if x.ndim > 3 else -1


def _differ(kept: Any, leaf: Any) -> bool:
    if not isinstance(leaf, Tensor) or not isinstance(kept, tuple):
        return kept is not leaf and not (type(kept) is type(leaf) and bool(kept == leaf))
    reference, alias, version = kept
    if _version(alias) != version:  # somebody wrote into it
        return True
    if reference() is leaf:
        return False
    alike = (alias.shape, alias.dtype, alias.device) == (leaf.shape, leaf.dtype, leaf.device)
    return not alike or not torch.equal(alias, leaf)


def _version(leaf: Tensor) -> int:
    return 0 if leaf.is_inference() else leaf._version


def _number(time: Any) -> float:
    return float(time.detach().double().mean()) if isinstance(time, Tensor) else float(time)
