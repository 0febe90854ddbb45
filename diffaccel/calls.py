"""What a call of a network is given: its timestep, and the conditioning that tells guidance branches apart."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diffaccel.structure import unwrapped

_TIMES = ("timestep", "timesteps", "t", "time", "sigma", "r")

# What a prompt, a class or their absence arrives as; the first of them that a call has is looked at.
_CONDITIONS = (
    "encoder_hidden_states",
    "encoder_hidden_states_t5",
    "cap_feats",
    "llm_features",
    "prompt_embeds",
    "clip_text_pooled",
    "proj_embedding",
    "class_labels",
    "pooled_projections",
    "clip",
    "c",
)


class Arguments:
    """Finds timestep and conditioning among the arguments of a network's call.

    Args:
        network: the denoiser.
        needs_time: whether steps are told by it; else a network may do without one.

    Raises:
        TypeError: it is needed, and the network's `forward` has no parameter that is a timestep by its name.
    """

    def __init__(self, network: nn.Module, needs_time: bool = True) -> None:
        inner = unwrapped(network)
        self.names = list(inspect.signature(type(inner).forward).parameters)[1:]
        known = (name for name in _TIMES if name in self.names)
        alike = (name for name in self.names if "time" in name)
        self.time = next(known, next(alike, None))
        self._conditions = [name for name in _CONDITIONS if name in self.names]
        if self.time is None and needs_time:
            raise TypeError(
                f"{type(inner).__name__}.forward has no timestep among its parameters ({', '.join(self.names)}): "
                f"diffaccel tells steps apart by one named {', '.join(_TIMES[:-1])} or {_TIMES[-1]}"
            )

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Tensor | None]:
        """Timestep (a number, or a tensor) and conditioning of one call, each None if it has none."""
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        time = given.get(self.time) if self.time is not None else None
        leaves = tree_leaves([given.get(name) for name in self._conditions])
        return time, next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)


class Branches:
    """Names the guidance branches of a run.

    A pipeline gives its network the same tensor for a prompt at every step, so a call belongs to the branch that was
    given this very tensor before: guidance may begin, end or change the order of its calls in mid-run. Where there is
    no such tensor, or one that is made anew for every call, the order of calls within a step tells.
    """

    def __init__(self) -> None:
        self._given: dict[str, weakref.ref[Tensor]] = {}  # what each branch was given last
        self._now: list[str] = []  # those seen in this step

    def __bool__(self) -> bool:
        return bool(self._now)

    def repeated(self, announced: str | None, given: Tensor | None) -> bool:
        """Whether this step has had such a call, so that it may be another loop's; without a tensor any may be."""
        if announced is not None:
            return announced in self._now
        if given is not None:
            return any(self._given[name]() is given for name in self._now if name in self._given)
        return bool(self._now)

    def next_step(self) -> None:
        """A step begins."""
        self._now = []

    def name(self, announced: str | None, given: Tensor | None) -> str:
        """The branch of a call that the pipeline announced by a name, or not, and gave this conditioning, or none."""
        name = announced
        if name is None and given is not None:
            waiting = {name: ref() for name, ref in self._given.items() if name not in self._now}
            # A branch whose tensor lives on unused is none of this call's; one whose tensor is gone may be.
            known = [name for name, held in waiting.items() if held is given]
            open_to_all = [name for name, held in waiting.items() if held is None]
            name = next(iter([*known, *open_to_all]), f"call {len(self._given)}")
        elif name is None:
            name = f"call {len(self._now)}"
        if given is not None:
            self._given[name] = weakref.ref(given)
        self._now.append(name)
        return name
