"""Weights that a Dot shares with Dash: the same objects, found by name; and how it knows its Dash again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from diffaccel.fingerprint import weights_digest
from diffaccel.morse.bodies import skeleton


def config_of(network: Any) -> dict[str, Any]:
    """The config of a diffusers network as JSON would give it back."""
    return plain({name: value for name, value in network.config.items() if not name.startswith("_")})


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with lists in the place of tuples."""
    through: dict[str, Any] = json.loads(json.dumps(dict(config)))
    return through


def digest(dash: nn.Module) -> str:
    """Digests of the weights of a network, adapters that were loaded into it aside; "" if any is out of reach.

    There are two, as "one/other": that of `weights_digest`, which rounds to bfloat16, and the same of weights rounded
    to float16 before, because what is rounded twice may differ. Of weights that are float16 both are one.
    """
    bare = skeleton(type(dash).__name__, config_of(dash))
    link(dict(bare.named_modules()), dash)
    return "/".join(dict.fromkeys((weights_digest(bare), weights_digest(_Halved(bare)))))


def same_weights(one: str, other: str) -> bool:
    """Whether these digests may be of one network, in whichever precisions."""
    return "" in (one, other) or bool({*one.split("/")} & {*other.split("/")})


class _Halved(nn.Module):
    """A network whose weights are seen in float16, one at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.network.named_parameters(*args, **kwargs):
            weight = parameter.detach()
            yield name, cast(nn.Parameter, weight.half() if weight.dtype.itemsize > 2 else weight)


def link(links: Mapping[str, nn.Module], dash: nn.Module) -> None:
    """Let modules hold the weights and buffers of those of the same name in Dash: not copies, the same objects.

    They hold Dash's own tables of them, so that a tensor that is replaced in Dash is replaced here, too.

    Raises:
        ValueError: a layer of Dash is missing, or of another class.
    """
    theirs = dict(dash.named_modules())
    for name, module in links.items():
        if not (module._parameters or module._buffers):
            continue
        source = theirs.get(name)
        while isinstance(base := getattr(source, "base_layer", None), nn.Module):  # below an adapter
            source = base
        if source is None or type(source) is not type(module):
            raise ValueError(
                f"{name} of {type(dash).__name__} is {type(source).__name__}, not {type(module).__name__}: a Dot "
                "shares the layers the network was made with, neither replaced nor quantized ones"
            )
        module.__dict__["_parameters"], module.__dict__["_buffers"] = source._parameters, source._buffers


def still_in(named: Mapping[str, nn.Module], *networks: nn.Module | None) -> dict[str, nn.Module]:
    """Those of the modules that hold weights or buffers and are part of one of the networks, by the same names."""
    inside = {module for network in networks if network is not None for module in network.modules()}
    return {
        name: module for name, module in named.items() if module in inside and (module._parameters or module._buffers)
    }


@contextmanager
def frozen(links: Mapping[str, nn.Module]) -> Iterator[None]:
    """Dash's weights get no gradient from what is recorded within."""
    if not torch.is_grad_enabled():
        yield
        return
    parameters = (p for module in links.values() for p in module._parameters.values() if p is not None)
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
