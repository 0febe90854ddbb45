"""Watching one network: which moment each of its calls is, and what is installed at its sites until it is taken off."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from diffaccel.calls import Arguments
from diffaccel.clock import Clock, Moment
from diffaccel.patch import Patch
from diffaccel.sites import Site
from diffaccel.structure import unwrapped

# All that is attached; not a mark on the network, which copies of it would share.
_ATTACHED: weakref.WeakSet[Watch] = weakref.WeakSet()


class Watch:
    """Hooks on a network and wrappers at its sites. Subclasses say what these do.

    Args:
        network: the denoiser.
        clock: tells step and guidance branch of each call.

    Raises:
        ValueError: no site was found, or the network is accelerated already.
        TypeError: the network takes no timestep.
    """

    def __init__(self, network: nn.Module, clock: Clock) -> None:
        check_free(network)
        self.network, self.clock = network, clock
        self.sites = self.find()
        self._arguments = Arguments(network, clock.reads_time)
        self._moment: Moment | None = None  # of the call in progress; None outside of one, or if it is of no run
        self._placed: list[tuple[nn.Module, str]] = []  # what is replaced
        self._patches: list[Patch] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._around: Patch | None = None

    def find(self) -> list[Site]:
        """The sites of the network as it is now."""
        raise NotImplementedError

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins."""
        raise NotImplementedError

    def leave(self, moment: Moment) -> None:
        """A call of the network ends well; one that fails does not come here."""
        raise NotImplementedError

    def at_site(self, i: int, real: Callable[..., Any]) -> Callable[..., Any]:
        """What to install at site `i` in place of `real`."""
        raise NotImplementedError

    def at_idle(self, i: int, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """What to install in place of a module that only site `i` needs."""
        return real

    def forget(self) -> None:
        """Drop what was kept of the run in progress."""
        raise NotImplementedError

    def in_use(self) -> str | None:
        """What to say to somebody who wants to accelerate the network, if anything speaks against it."""
        return None

    def attach(self) -> None:
        """Put sites, idle modules and hooks in place."""
        self._listen()
        self._place()
        _ATTACHED.add(self)
        self.clock.attach(unwrapped(self.network))

    def detach(self) -> None:
        """Restore every attribute and drop what was kept."""
        self._lift()
        while self._hooks:
            self._hooks.pop().remove()
        if self._around is not None:
            self._around.remove()
            self._around = None
        _ATTACHED.discard(self)
        self._moment = None
        self.forget()

    def refresh(self) -> bool:
        """Find the sites anew if the network changed since, and say so: adapters came or went, blocks were compiled."""
        found = self.find()
        if _places(found) == self._placed:
            return False
        self._lift()
        self.sites = found
        self._place()
        return True

    def _listen(self) -> None:
        """Hear of every call of the network."""
        # Native hooks on the root: its `forward` is where accelerate's offloading lives.
        if self.network._compiled_call_impl is not None:  # hooks would be traced
            self._around = Patch(self.network, "_compiled_call_impl", self._surround)
        else:
            self._hooks = [
                self.network.register_forward_pre_hook(_Hook(self._before), with_kwargs=True),
                self.network.register_forward_hook(_Hook(self._after)),
            ]

    def _place(self) -> None:
        names = {module: name for name, module in self.network.named_modules()}
        for i, site in enumerate(self.sites):
            self._patches.append(Patch(site.owner, entry(site.owner, site.attr), partial(self.at_site, i)))
            for module in site.idle:
                self._patches.append(Patch(module, entry(module), partial(self.at_idle, i, names[module])))
        self._placed = _places(self.sites)

    def _lift(self) -> None:
        while self._patches:
            self._patches.pop().remove()

    def _surround(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._before(self.network, args, kwargs)
            output = real(*args, **kwargs)
            self._after(self.network, args, output)
            return output

        return call

    def _before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._moment is not None:  # the last call failed
            self._moment = None
            self.clock.interrupt()
        moment = self.clock.locate(*self._arguments.of(args, kwargs))
        if moment is not None:
            self.enter(moment, args, kwargs)
        self._moment = moment

    def _after(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        moment, self._moment = self._moment, None
        if moment is not None:
            self.leave(moment)


class _Hook:
    """A hook of a watch. A copy of the network, or a pickled one, is not watched: it gets a hook that does nothing."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __call__(self, *args: Any) -> None:
        self.call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_hook, ()


def _nothing(*_: Any) -> None:
    """The hook of a copy."""


def _no_hook() -> Callable[..., None]:
    return _nothing


def check_free(network: nn.Module) -> None:
    """Raise ValueError if the network is accelerated already, by diffaccel or by diffusers' own caches."""
    inner = unwrapped(network)
    for watch in _ATTACHED:
        if unwrapped(watch.network) is inner and (reason := watch.in_use()):
            raise ValueError(reason)
    if getattr(inner, "is_cache_enabled", False):
        raise ValueError(f"this {type(inner).__name__} already has a diffusers cache: call its disable_cache() first")


def entry(module: nn.Module, attr: str = "forward") -> str:
    """Where a call of a module enters: what torch.compile made of it runs `forward` out of our reach."""
    return attr if attr != "forward" or module._compiled_call_impl is None else "_compiled_call_impl"


def _places(sites: Sequence[Site]) -> list[tuple[nn.Module, str]]:
    """What is replaced at these sites."""
    return [
        place
        for site in sites
        for place in ((site.owner, entry(site.owner, site.attr)), *((module, entry(module)) for module in site.idle))
    ]
