"""Networks under torch.compile: everything is decided outside of the graphs, so that there are two of them, no more.

Inside a compiled network a site is a slot: computing steps run the real code and hand its output out, skipping steps
return what was put in. One Python flag tells the two apart, and torch.compile makes one graph of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from diffaccel.feature import stand_in
from diffaccel.sites import Site
from diffaccel.structure import unwrapped


@dataclass
class Slot:
    """What one replaced module does in the next call: run and keep its output, or return what it is given."""

    computing: bool = True
    kept: Any = None
    given: Any = None


@dataclass
class Slots:
    """The slots of a network, by site, and by name for the modules that are idle with site number `i`."""

    sites: dict[int, Slot] = field(default_factory=dict)
    idle: dict[str, tuple[int, Slot]] = field(default_factory=dict)
    stand_ins: dict[tuple[str, str], Any] = field(default_factory=dict)  # by name and branch

    def at_site(self, i: int, real: Callable[..., Any]) -> Callable[..., Any]:
        """What to install at site `i`; this is traced."""
        slot = self.sites.setdefault(i, Slot())

        def call(*args: Any, **kwargs: Any) -> Any:
            if not slot.computing:
                return slot.given
            slot.kept = real(*args, **kwargs)
            return slot.kept

        return call

    def at_idle(self, i: int, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """What to install in place of a module that only site `i` needs; this is traced."""
        slot = self.idle.setdefault(name, (i, Slot()))[1]

        def call(*args: Any, **kwargs: Any) -> Any:
            if not slot.computing:
                return slot.given
            output = real(*args, **kwargs)
            slot.kept = stand_in(output)
            return output

        return call

    def fill(self, computing: Sequence[bool], branch: str, forecast: Callable[[int], Any]) -> None:
        """Before a call: what each slot does."""
        for i, slot in self.sites.items():
            slot.computing, slot.given = computing[i], None if computing[i] else forecast(i)
        for name, (i, slot) in self.idle.items():
            slot.computing, slot.given = computing[i], None if computing[i] else self.stand_ins[name, branch]

    def collect(self, branch: str) -> Mapping[int, Any]:
        """After a call: what the sites that computed returned; nothing of a site that was not reached."""
        kept = {i: slot.kept for i, slot in self.sites.items() if slot.kept is not None}
        for name, (_, slot) in self.idle.items():
            if slot.kept is not None:
                self.stand_ins[name, branch] = slot.kept
        for slot in (*self.sites.values(), *(slot for _, slot in self.idle.values())):
            slot.kept = slot.given = None
        return kept


def is_compiled(network: nn.Module) -> bool:
    """Whether a network is compiled as a whole: by `network.compile()`, or by `torch.compile(network)`."""
    return network._compiled_call_impl is not None or unwrapped(network) is not network


def check_outside_compiled(network: nn.Module, sites: Sequence[Site], level: str) -> None:
    """Raise ValueError if a site lies within a compiled block, where it would be traced."""
    inner = unwrapped(network)
    for site in sites:
        parts = site.name.split(".")
        for depth in range(1, len(parts)):
            above = inner.get_submodule(".".join(parts[:depth]))
            if above._compiled_call_impl is not None:
                raise ValueError(
                    f"{site.name} lies within a compiled {type(above).__name__}, out of the reach of level={level!r}: "
                    "choose level='model' or 'block', or compile the whole network before you accelerate it"
                )


def check_not_compiled_since(network: nn.Module) -> None:
    """Raise RuntimeError if a network that was accelerated as it was is compiled as a whole by now."""
    if torch.compiler.is_compiling() or is_compiled(network):
        raise RuntimeError(
            f"this {type(network).__name__} was compiled after it was accelerated: call remove(), compile it, and "
            "accelerate what is compiled"
        )


def check_recordable(network: nn.Module) -> None:
    """Raise ValueError if a network is compiled: its features are recorded as it runs in Python."""
    if is_compiled(network) or any(module._compiled_call_impl is not None for module in network.modules()):
        raise ValueError(
            f"this {type(unwrapped(network)).__name__} is compiled: record or calibrate it before you compile it"
        )
