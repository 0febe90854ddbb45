"""A session whose sites are the branches of layers, each with a schedule of its own.

Where a layer computes none of its branches it is not entered at all: it adds the sum of what they would return, which
is worked out once between two computed steps. A stack in which no layer computes adds one such sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffaccel.branches import CROSS, Layer, Part, condition_encoder, first_tensor, layers, numbered, passable, unfused
from diffaccel.clock import Clock, Moment
from diffaccel.compiled import is_compiled
from diffaccel.feature import Feature, forecast, stand_in
from diffaccel.methods import Method, written_out
from diffaccel.modulation import Modulation
from diffaccel.patch import Patch
from diffaccel.session import Key, Session
from diffaccel.sites import Site
from diffaccel.structure import unwrapped
from diffaccel.watch import entry


class BranchSession(Session):
    """The state of one network accelerated by a method of level "branch".

    Raises:
        ValueError: as `Session`, or the network is compiled as a whole.
    """

    def __init__(self, network: nn.Module, method: Method, clock: Clock) -> None:
        self._layers: list[Layer] = []
        self._parts: list[Part] = []  # those that can be passed by
        self._gates: dict[int, tuple[Modulation, int]] = {}  # by site, its layer's and its number there
        self._holding: list[list[int]] = []  # by site, ids of the parts it is in
        self._cross: list[int] = []  # the sites of cross-attention
        self._unfused: list[torch.utils.hooks.RemovableHandle] = []  # hooks that keep layers off their fused path
        self._others: set[int] = set()  # ids of the modules that turned out to do more than add
        self._tried = -1  # the run in which that was found out
        self._passing: set[int] = set()  # of the call in progress, ids of the modules that are passed by
        self._sums: dict[tuple[int, str], Line] = {}  # by id of the module and branch of guidance
        super().__init__(network, method, clock)

    def find(self) -> list[Site]:
        """The branches of all layers."""
        if is_compiled(self.network):
            raise ValueError(
                f"this {type(unwrapped(self.network)).__name__} is compiled as a whole, and {written_out(self.method)} "
                "decides between its layers: accelerate it uncompiled, or use method='taylorseer' on what is compiled"
            )
        return super().find()

    def forget(self) -> None:
        """Drop all anchors and what was made of them."""
        super().forget()
        self._sums.clear()
        for modulation, _ in self._gates.values():
            modulation.forget()

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins: decide which branches compute, and which layers are passed by."""
        super().enter(moment, args, kwargs)
        if self.network.training and torch.is_grad_enabled():  # held outputs have no gradients
            self._computing = [True] * len(self._computing)
        elif self._tried < 0:
            self._tried = moment.run
        computing, others = self._computing, self._others
        self._passing = {
            id(part.module)
            for part in self._parts
            if id(part.module) not in others and not any(computing[i] for i in part.sites)
        }

    def _place(self) -> None:
        super()._place()
        self._layers = layers(self.network)
        self._parts = list(passable(self.network, self._layers))
        self._holding = [[id(part.module) for part in self._parts if i in part.sites] for i in range(len(self.sites))]
        self._cross = [i for i, site in enumerate(self.sites) if site.kind == CROSS]
        for part in self._parts:
            self._patches.append(Patch(part.module, "forward", partial(self._around_part, part)))
        for layer, own in numbered(self._layers):
            if layer.modulation is not None:
                modulation = Modulation(layer.modulation, len(own))
                self._gates |= {i: (modulation, number) for number, i in enumerate(own)}
                around = partial(self._around_modulation, modulation, own)
                self._patches.append(Patch(layer.modulation, entry(layer.modulation), around))
        self._unfused = unfused(self._layers)
        if self._cross and (encoder := condition_encoder(self.network)) is not None:
            self._patches.append(Patch(encoder, entry(encoder), self._around_encoder))

    def _lift(self) -> None:
        super()._lift()
        self._gates, self._others, self._tried = {}, set(), -1
        while self._unfused:
            self._unfused.pop().remove()

    def _keep(self, key: Key, step: int, feature: Feature) -> None:
        super()._keep(key, step, feature)
        for part in self._holding[key[0]]:  # the other sums still hold
            self._sums.pop((part, key[1]), None)

    def _around_part(self, part: Part, real: Callable[..., Any]) -> Callable[..., Any]:
        """A layer or stack that adds one sum if none of its branches computes."""

        def call(*args: Any, **kwargs: Any) -> Any:
            moment = self._moment
            stream: Tensor = args[0] if args else kwargs[part.stream]
            if moment is None or id(part.module) not in self._passing:
                output = real(*args, **kwargs)
                if moment is not None and not self._only_adds(part, moment, stream, output):
                    self._others.add(id(part.module))
                return output
            self._skipped.update((i, moment.branch) for i in part.sites)
            return stream + self._sum(part, moment)

        return call

    def _only_adds(self, part: Part, moment: Moment, stream: Tensor, output: Any) -> bool:
        """Whether a part returned its stream with what its branches added. Values are compared in the first run."""
        if not isinstance(output, Tensor) or output.shape != stream.shape:
            return False
        if moment.run != self._tried or moment.step != self._first[moment.branch]:
            return True
        if any((i, moment.branch, 0) not in self._anchors for i in part.sites):
            return False
        with torch.no_grad():
            added = self._added(part, moment.branch, moment.step)
            precision = max(torch.finfo(tensor.dtype).eps for tensor in (stream, output, added))
            size = torch.stack([tensor.abs().amax().float() for tensor in (stream, output, added)]).amax()
            rest = (output - stream - added).abs().amax() if added.shape == stream.shape else size
            return bool(rest <= 4 * len(part.sites) * precision * size)

    def _around_modulation(self, modulation: Modulation, own: range, real: Callable[..., Any]) -> Callable[..., Any]:
        """A modulation that keeps shift, scale and gate of the branches that do not compute."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._moment is None:
                return real(*args, **kwargs)
            computing = [self._computing[i] for i in own]
            return modulation.of(self._moment.branch, computing, lambda: real(*args, **kwargs))

        return call

    def _around_encoder(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """An encoder of conditions that runs only where a branch attends to them."""

        def call(*args: Any, **kwargs: Any) -> Any:
            moment = self._moment
            if moment is None:
                return real(*args, **kwargs)
            key = ("encoder", moment.branch, 0)
            if key not in self._stand_ins or any(self._computing[i] for i in self._cross):
                output = real(*args, **kwargs)
                self._stand_ins[key] = stand_in(output, self._stand_ins.get(key))
                return output
            return self._stand_ins[key]

        return call

    def _sum(self, part: Part, moment: Moment) -> Tensor:
        """What all branches of a part add at a step. Between computed steps it is a straight line in the step."""
        key = (id(part.module), moment.branch)
        if key not in self._sums:
            begin, slope = self._added(part, moment.branch, moment.step), None
            if self.method.order:
                if torch.finfo(begin.dtype).bits < 32:
                    return begin  # a slope of two values that are nearly equal would be lost in rounding
                slope = self._added(part, moment.branch, moment.step + 1) - begin
            self._sums[key] = Line(moment.step, begin, slope)
        return self._sums[key].at(moment.step)

    def _added(self, part: Part, branch: str, step: int) -> Tensor:
        total: Tensor | None = None
        for i in part.sites:
            anchors = self._anchors[i, branch, 0]
            weights = self._weights_of(i, anchors, step)
            added = first_tensor(forecast([feature for _, feature in anchors], weights))
            if i in self._gates:
                modulation, number = self._gates[i]
                added = modulation.gate(branch, number, added) * added
            total = added if total is None else total + added
        assert total is not None
        return total


@dataclass(frozen=True, eq=False)
class Line:
    """A tensor that moves along a straight line: `begin` at step `step`, `slope` a step, None for 0."""

    step: int
    begin: Tensor
    slope: Tensor | None

    def at(self, step: int) -> Tensor:
        """The tensor at a step."""
        if self.slope is None or step == self.step:
            return self.begin
        return torch.add(self.begin, self.slope, alpha=step - self.step)
