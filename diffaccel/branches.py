"""Branches: what each layer of a transformer adds to its stream, by attention, cross-attention and feed-forward.

Found by structure. A branch is the call that returns what is added, so that skipping it skips its norm, too. Four kinds
of layer are known: those of torch (`nn.TransformerDecoderLayer`, `nn.TransformerEncoderLayer`), AdaLN-Zero layers (DiT,
lerobot's multi-task DiT), those of RDT, and the plain ones of diffusers. Layers of other kinds have the sublayers of
`diffaccel.structure` as branches, and their norms always run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffaccel.structure import blocks, in_order_of_use, is_attention, is_feed_forward, parts, sublayers, unwrapped

SELF, CROSS, FEED_FORWARD = "sa", "ca", "ffn"
"""Kinds of branches."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch of a layer.

    Attributes:
        name: `<path of the layer>.<kind>`.
        kind: "sa", "ca" or "ffn".
        owner: the module whose attribute is replaced to catch the branch.
        attr: that attribute, a callable; what it returns, or the first item of it, is added to the stream.
        idle: modules whose output nothing but this branch needs.
    """

    name: str
    kind: str
    owner: nn.Module
    attr: str = "forward"
    idle: tuple[nn.Module, ...] = ()


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer and its branches, in order of execution.

    Attributes:
        name: dotted path below the network.
        module: the layer.
        branches: of it.
        modulation: the module of an AdaLN-Zero layer that makes shift, scale and gate of the first branch, then of the
            second; a gate multiplies what a branch returns before it is added. None if nothing is gated.
        additive: whether the layer does nothing but add its branches to its first argument.
    """

    name: str
    module: nn.Module
    branches: tuple[Branch, ...]
    modulation: nn.Module | None = None
    additive: bool = False


@dataclass(frozen=True, eq=False)
class Part:
    """A layer, or a stack of layers, that only adds its branches to its first argument.

    Attributes:
        module: the layer or the stack.
        sites: numbers of its branches.
        stream: name of the first argument.
    """

    module: nn.Module
    sites: range
    stream: str


def first_tensor(output: Any) -> Tensor:
    """What a branch returned that is added: its output, or the first item of it."""
    added: Tensor = output if isinstance(output, Tensor) else output[0]
    return added


def layers(network: nn.Module) -> list[Layer]:
    """The layers of a network, in order of execution; empty if there are none.

    Encoder layers of torch beside decoder layers work on conditions, not on the stream, and are left out.
    """
    network = unwrapped(network)
    chain = blocks(network) or [("", network)]
    found = [layer for name, block in chain for layer in _walk(name, block)]
    if any(_is_torch_decoder(layer.module) for layer in found):
        found = [layer for layer in found if not isinstance(layer.module, nn.TransformerEncoderLayer)]
    return found or [layer for name, block in blocks(network) if (layer := _other(name, block)) is not None]


def stacks(network: nn.Module) -> list[tuple[nn.Module, list[nn.Module]]]:
    """Containers of torch that run their layers one after the other and do nothing else, with those layers."""
    kinds = (nn.TransformerDecoder, nn.TransformerEncoder)
    found = [module for module in unwrapped(network).modules() if isinstance(module, kinds) and module.norm is None]
    return [(stack, list(stack.layers)) for stack in found if len(stack.layers)]


def passable(network: nn.Module, found: Sequence[Layer]) -> Iterator[Part]:
    """The layers that only add their branches, and the stacks of nothing but such layers."""
    sites: dict[nn.Module, range] = {}
    for layer, own in numbered(found):
        if layer.additive:
            sites[layer.module] = own
            yield _part(layer.module, own)
    for stack, inner in stacks(network):
        ranges = [sites[layer] for layer in inner if layer in sites]
        if len(ranges) == len(inner):
            yield _part(stack, range(ranges[0].start, ranges[-1].stop))


def numbered(found: Sequence[Layer]) -> Iterator[tuple[Layer, range]]:
    """Layers with the numbers of their branches, over all layers."""
    first = 0
    for layer in found:
        yield layer, range(first, first := first + len(layer.branches))


def _part(module: nn.Module, sites: range) -> Part:
    # Of the class: what others put around `forward` may not show what it takes.
    return Part(module, sites, list(inspect.signature(type(module).forward).parameters)[1])


def condition_encoder(network: nn.Module) -> nn.Module | None:
    """The module that makes what cross-attention attends to, and nothing else; None if there is none.

    It is the child called `encoder` of a network whose stack of decoder layers is its child called `decoder`.
    """
    network = unwrapped(network)
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    return encoder if isinstance(encoder, nn.Module) and isinstance(decoder, nn.TransformerDecoder) else None


def unfused(found: Sequence[Layer]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that keep encoder layers of torch off their fused path, which without gradients passes branches by."""
    encoders = [layer.module for layer in found if isinstance(layer.module, nn.TransformerEncoderLayer)]
    return [module.register_forward_pre_hook(_nothing) for module in encoders]


def _nothing(*_: object) -> None:
    """A hook."""


def _walk(name: str, module: nn.Module) -> Iterator[Layer]:
    """The layers of known kinds in a module."""
    for kind in (_torch, _adaln_zero, _rdt, _diffusers):
        if (layer := kind(name, module)) is not None:
            yield layer
            return
    children = dict(module.named_children())
    for child in in_order_of_use(module, children):
        yield from _walk(f"{name}.{child}" if name else child, children[child])


def _torch(name: str, module: nn.Module) -> Layer | None:
    """`nn.TransformerDecoderLayer` and `nn.TransformerEncoderLayer`, or what calls its branches like them."""
    calls = [(SELF, "_sa_block"), (CROSS, "_mha_block"), (FEED_FORWARD, "_ff_block")]
    calls = [(kind, attr) for kind, attr in calls if callable(getattr(module, attr, None))]
    if len(calls) < 2 or not hasattr(module, "norm_first"):
        return None
    # After the addition, a norm works on the stream itself: it has to run, and the layer does more than add.
    first = bool(module.norm_first)
    branches = tuple(
        Branch(f"{name}.{kind}", kind, module, attr, parts(module, f"norm{number}") if first else ())
        for number, (kind, attr) in enumerate(calls, start=1)
    )
    return Layer(name, module, branches, additive=first)


def _adaln_zero(name: str, module: nn.Module) -> Layer | None:
    """Attention and feed-forward, each with shift, scale and gate of one modulation (DiT, arXiv:2212.09748)."""
    attention = next(iter(parts(module, "attn", "multihead_attn")), None)
    modulation, feed_forward = getattr(module, "adaLN_modulation", None), getattr(module, "mlp", None)
    if not (isinstance(modulation, nn.Module) and isinstance(feed_forward, nn.Module)) or attention is None:
        return None
    return _of_modules(name, module, [attention], feed_forward, modulation)


def _rdt(name: str, module: nn.Module) -> Layer | None:
    """Attention, cross-attention and feed-forward, each with a norm before it (RDT-1B, arXiv:2410.07864)."""
    attentions, feed_forward = parts(module, "attn", "cross_attn"), getattr(module, "ffn", None)
    if len(attentions) < 2 or not isinstance(feed_forward, nn.Module) or not hasattr(module, "norm3"):
        return None
    return _of_modules(name, module, list(attentions), feed_forward, None)


def _diffusers(name: str, module: nn.Module) -> Layer | None:
    """diffusers' `BasicTransformerBlock` without gates, and what is built like it."""
    attentions, feed_forward = parts(module, "attn1", "attn2"), getattr(module, "ff", None)
    # Models of diffusers have a configuration of that name, too, and warn whoever reads it as an attribute.
    plain = vars(module).get("norm_type") in ("layer_norm", "ada_norm") and not hasattr(module, "fuser")
    if not attentions or not isinstance(feed_forward, nn.Module) or not plain:
        return None
    return _of_modules(name, module, list(attentions), feed_forward, None)


def _of_modules(
    name: str, module: nn.Module, attentions: list[nn.Module], feed_forward: nn.Module, modulation: nn.Module | None
) -> Layer:
    """A layer whose branches are modules, each with the norm of its number before it."""
    owners = [*zip((SELF, CROSS), attentions, strict=False), (FEED_FORWARD, feed_forward)]
    # diffusers keeps the norm of the feed-forward layer under its third name, attention of one kind or two.
    third = len(attentions) == 1 and modulation is None and isinstance(getattr(module, "norm3", None), nn.Module)
    numbers = [1, 3] if third else range(1, len(owners) + 1)
    branches = tuple(
        Branch(f"{name}.{kind}", kind, owner, idle=parts(module, f"norm{number}"))
        for (kind, owner), number in zip(owners, numbers, strict=True)
    )
    return Layer(name, module, branches, modulation, additive=True)


def _other(name: str, block: nn.Module) -> Layer | None:
    """A layer of another kind: its sublayers, each under its own path."""
    found = []
    for (path, owner), idle in sublayers(block, name):
        kind = _kind(path, owner)
        if kind is not None:
            found.append(Branch(f"{path}.{kind}", kind, owner, idle=idle))
    return Layer(name, block, tuple(found)) if found else None


def _kind(path: str, owner: nn.Module) -> str | None:
    """The kind of a sublayer; None for convolutions."""
    last = path.rpartition(".")[2]
    if is_attention(owner):
        return CROSS if last == "attn2" or "cross" in last else SELF
    # What ends a parallel branch, or a gated feed-forward layer.
    return FEED_FORWARD if is_feed_forward(path) or last in ("proj_out", "down_proj") else None


def _is_torch_decoder(module: nn.Module) -> bool:
    return hasattr(module, "_mha_block")
