"""Dot, the small network that tells how far Dash's estimate has moved since Dash was last run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffaccel.morse import bodies
from diffaccel.morse.adapters import add_adapters
from diffaccel.morse.ends import Notes
from diffaccel.morse.sharing import config_of, digest, frozen, link, plain, same_weights, still_in
from diffaccel.structure import unwrapped

KINDS = ("shared", "independent")
# Of the two arguments that hold such, what concerns Dash's own adapters only.
_OF_DASH = ("scale", "ip_adapter_image_embeds", "ip_hidden_states")


class MorseDot(ModelMixin, ConfigMixin):
    """A network that is given the last Dash step and returns the change of Dash's estimate since then.

    Kind "shared" runs Dash's own frozen layers, with LoRA, between new ends that make its grid 2^m times coarser; kind
    "independent" is a smaller network of the same class with weights of its own. Both know both times. A new Dot
    returns exactly zero. Only what is new is a parameter of the Dot, and is saved.

    Source: Morse, ICML 2025 (arXiv 2506.18251), Section 3.3; independent Dots are its ablation.

    Args:
        base_class: class of Dash.
        base_config: its config.
        base_weights: digest of its weights, see `diffaccel.morse.sharing.digest`.
        kind: "shared" or "independent".
        m: halvings of the grid in front of the body; for a transformer, 2^m x 2^m tokens become one. May be 0.
        widths: channels of the new levels, finest first; at least m of them, of a transformer the first counts.
        rank: of the LoRA on every layer of a shared body; 0 for none.
        blocks: indices of the transformer blocks a shared body runs, over its lists in order of execution; None: all.
        body_config: of an independent body, what differs from `base_config`.
        residual_space: "epsilon" or "sample": what the Dot was trained to correct, see `diffaccel.morse.coordinates`.
        guided: it corrects the guided estimate, not each branch.
        base: "hold" or "taylor": what it was trained to correct the estimate from.
        scheduler: class it was trained with.
        pair_sampling: how its pairs of times were drawn.
        ratio: Dash's seconds over its own, with the machine they were measured on.

    Raises:
        ValueError: an unknown kind or class, or a body that cannot be made so.
        ImportError: peft is needed and not installed.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        base_class: str,
        base_config: dict[str, Any],
        base_weights: str = "",
        kind: str = "shared",
        m: int = 2,
        widths: Sequence[int] = (96, 160),
        rank: int = 64,
        blocks: Sequence[int] | None = None,
        body_config: dict[str, Any] | None = None,
        residual_space: str = "epsilon",
        guided: bool = False,
        base: str = "hold",
        scheduler: str = "",
        pair_sampling: str = "",
        ratio: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._family = bodies.family(base_class)
        _check(kind, m, rank, residual_space, base)
        if kind == "shared" and body_config:
            raise ValueError("body_config is for kind='independent': a shared body has Dash's config")
        if kind == "independent" and blocks is not None:
            raise ValueError("blocks is for kind='shared': give body_config with fewer layers")
        unknown = sorted({*(body_config or {})} - {*base_config})
        if unknown:
            raise ValueError(f"body_config: {base_class} has no {', '.join(unknown)}")
        self._merged, self._notes, self._attached = 2**m, Notes(), kind == "independent"
        shared = kind == "shared"
        body: Any = bodies.skeleton(base_class, {**base_config, **(body_config or {})}, empty=shared)
        named = dict(body.named_modules())
        if blocks is not None:
            bodies.keep_blocks(body, self._family.blocks, list(blocks))
        adapters = add_adapters(body, rank if shared else 0, without=self._family.ends)
        taken, returned = bodies.channels(base_config)
        time = bodies.time_width(body, self._family)
        self._family.install(body, 2 * taken + returned, returned, m, tuple(widths), time, self._notes)
        self.time = bodies.embed_two_times(body, self._family, self._notes)
        self._links: dict[str, nn.Module] = {}
        if not shared:
            self.body, self.patches = body, self._notes.patches
            return
        first, last = self._family.ends
        self.entry, self.exit, self.adapters = getattr(body, first), getattr(body, last), adapters
        # Dash's weights are no parameters of the Dot, so the body is no submodule of it.
        object.__setattr__(self, "body", body)
        self._links = still_in(named, body, self._notes.patches)

    @classmethod
    def of(
        cls,
        dash: nn.Module,
        kind: str = "shared",
        m: int = 2,
        widths: Sequence[int] = (96, 160),
        rank: int = 64,
        blocks: Sequence[int] | None = None,
        body_config: dict[str, Any] | None = None,
        residual_space: str = "epsilon",
        guided: bool = False,
        base: str = "hold",
    ) -> MorseDot:
        """A new Dot of a network, attached to it, on its device and in its dtype; it returns zero.

        Raises:
            ValueError: as the class.
            ImportError: as the class.
        """
        dash = unwrapped(dash)
        bodies.family(type(dash).__name__)  # before its config is asked for
        dot: MorseDot = cls(
            base_class=type(dash).__name__,
            base_config=config_of(dash),
            base_weights=digest(dash),
            kind=kind,
            m=m,
            widths=list(widths),
            rank=rank,
            blocks=None if blocks is None else list(blocks),
            body_config=body_config,
            residual_space=residual_space,
            guided=guided,
            base=base,
        )
        dot._attach(dash)
        return dot

    def attach(self, dash: nn.Module) -> None:
        """Take the weights of a shared body from Dash, and its device and dtype.

        The body's layers hold Dash's own Parameter objects, also those Dash is given later on; a LoRA that is loaded
        into Dash stays out.

        Raises:
            ValueError: Dash is another network than this Dot was made for, or its weights are out of reach.
        """
        dash = unwrapped(dash)
        self._check_base(dash)
        self._attach(dash)

    def _attach(self, dash: nn.Module) -> None:
        """As `attach`, of the network the Dot was just made for."""
        if any(parameter.is_meta for parameter in dash.parameters()):
            raise ValueError(
                f"the weights of {type(dash).__name__} are offloaded: attach the Dot before offloading them"
            )
        link(self._links, dash)
        self._attached = True
        first = next(dash.parameters())
        nn.Module.to(self, device=first.device, dtype=first.dtype)  # diffusers' own warns of nothing

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        x_s: Tensor,
        k_s: Tensor,
        t_s: Tensor | float,
        conditioning: Mapping[str, Any],
    ) -> Tensor:
        """How far the estimate has moved since the last Dash step.

        Args:
            x: sample, as Dash would be given it [B, ...].
            t: time, as Dash would be given it; a number, [] or [B].
            x_s: sample at the last Dash step, as Dash was given it.
            k_s: what was kept of Dash's estimate there.
            t_s: time there.
            conditioning: Dash's other arguments by name, without sample, time and `return_dict`.

        Returns:
            The change, shaped like `k_s`.

        Raises:
            ValueError: not attached, a sample that cannot be divided, or an argument only Dash can take.
        """
        if not self._attached:
            raise ValueError("this Dot shares its body with Dash: dot.attach(network) first")
        family, notes = self._family, self._notes
        now, then = (torch.as_tensor(time, device=x.device).expand(len(x)) for time in (t, t_s))
        entering = torch.cat([x, x_s.to(x.dtype), k_s.to(x.dtype)], dim=family.axis)
        try:
            arguments = family.prepare(self.body, x, _conditioning(conditioning), self._merged, notes)
            arguments |= {family.sample: entering, "timestep": now, "return_dict": False}
            notes.t_s = then if family.time_scale == 1 else then.to(x.dtype) * family.time_scale
            with frozen(self._links):
                residual: Tensor = self.body(**arguments)[0]
        finally:
            notes.clear()
        return residual

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but the body stays as it is used: without the dropout of labels."""
        super().train(mode)
        self.body.eval()
        return self

    def _check_base(self, dash: nn.Module) -> None:
        """Raise ValueError if this is not the network the Dot is of."""
        made = f"this Dot was made for {self.config.base_class}"
        if type(dash).__name__ != self.config.base_class:
            raise ValueError(f"{made}, not for {type(dash).__name__}")
        mine, theirs = plain(self.config.base_config), config_of(dash)
        if different := sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name)):
            raise ValueError(f"{made} of another config: {', '.join(different)} differ")
        if not same_weights(digest(dash), self.config.base_weights):
            raise ValueError(f"{made} with other weights (a LoRA fused into them?): train one for these")


def _check(kind: str, m: int, rank: int, residual_space: str, base: str) -> None:
    """Raise ValueError for an option that is none."""
    words = {"kind": KINDS, "residual_space": ("epsilon", "sample"), "base": ("hold", "taylor")}
    for name, word in (("kind", kind), ("residual_space", residual_space), ("base", base)):
        if word not in words[name]:
            raise ValueError(f"{name} must be one of {', '.join(words[name])}, got {word!r}")
    if m < 0 or rank < 0:
        raise ValueError(f"m and rank must not be negative, got {m} and {rank}")


def _conditioning(given: Mapping[str, Any]) -> dict[str, Any]:
    """Dash's other arguments without what concerns its own adapters.

    Raises:
        ValueError: there are features of a ControlNet or T2I adapter, which have the size of Dash's.
    """
    taken = dict(given)
    if names := [n for n, v in taken.items() if v is not None and ("additional_residual" in n or "controlnet_" in n)]:
        raise ValueError(f"a Dot cannot take {', '.join(names)}: run Dash where a ControlNet or T2I adapter is used")
    for name in ("cross_attention_kwargs", "joint_attention_kwargs"):
        if taken.get(name) is not None:
            taken[name] = {key: value for key, value in taken[name].items() if key not in _OF_DASH}
    return taken
