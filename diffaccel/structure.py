"""What denoisers look like inside: their chain of blocks, and the branches within a block. Found by structure.

No class is named here: lists of blocks are those that hold attention, and the order of execution is the one in which a
network's `forward` first mentions its parts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from torch import nn

Named = tuple[str, nn.Module]  # dotted path below the network, module

# Children that project to queries: to_q, to_qkv, to_query, img_attn_qkv, q_linear, ...
_QUERIES = re.compile(r"(^|_)q(kv|uery)?(_|$)")

# Names under which blocks keep their feed-forward layers.
_FEED_FORWARD = re.compile(r"(^|_)(ff|ffn|mlp|feed_?forward|transition)(_|$)")
_BESIDE_IT = re.compile(r"norm|(^|_)(ln|act|mod|scale|gate|shift)(_|$)", re.IGNORECASE)

# Branches without a module of their own: children that tell them, the one that ends them, those that lead to it.
_BRANCHES = (
    # A parallel block (FLUX single stream): proj_out([attn, mlp]).
    (("attn", "proj_mlp", "proj_out"), "proj_out", ("attn", "proj_mlp", "act_mlp")),
    # A residual convolution block: conv2 ends what is added to the input.
    (("conv1", "conv2", "time_emb_proj"), "conv2", ("norm1", "conv1", "time_emb_proj", "norm2")),
)
# The same for a gated feed-forward layer whose projections lie in the block itself, beside its attention.
_GATED = ("down_proj", ("gate_proj", "up_proj", "mlp_act"))

# The levels of a UNet of one dimension, each a list.
_LEVELS = ("down_modules", "mid_modules", "up_modules")

# What a layer of a UNet's block is made of, one of each.
_LAYER_PARTS = {"resnets", "attentions", "temp_convs", "temp_attentions", "motion_modules"}


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, if `torch.compile(network)` was wrapped around it."""
    inner: nn.Module = getattr(network, "_orig_mod", network)
    return inner


def blocks(model: nn.Module) -> list[Named]:
    """The chain of blocks of a network, in order of execution: `(name, block)`.

    A UNet runs its down blocks, its mid block and its up blocks; a transformer its lists of blocks. A list counts if
    one of its modules holds an attention layer, a single module if it is called a block and does; lists of bare
    attention layers are parts of blocks. A network that only wraps another has the blocks of that one.
    """
    if hasattr(model, "down_blocks") and hasattr(model, "up_blocks"):
        return [item for name in ("down_blocks", "mid_block", "up_blocks") for item in _items(model, name)]
    children = dict(model.named_children())
    found = [
        item
        for name in in_order_of_use(model, children)
        if _is_chain(name, children[name])
        for item in _items(model, name)
    ]
    if found or not children:
        return found
    # What a torch decoder attends to comes from an encoder, which is no part of the chain.
    wrapping = sorted(children.items(), key=lambda item: not isinstance(item[1], nn.TransformerDecoder))
    return next((_below(name, inner) for name, child in wrapping if (inner := blocks(child))), [])


def sublayers(block: nn.Module, name: str) -> Iterator[tuple[Named, tuple[nn.Module, ...]]]:
    """The attention, MLP and convolution branches inside one block whose outputs are added to its residual stream.

    Each comes with the modules that lead to nothing but it.
    """
    if is_attention(block) or is_feed_forward(name):
        yield (name, block), ()
        return
    for needed, end, leading in _BRANCHES:
        if all(isinstance(getattr(block, part, None), nn.Module) for part in needed):
            yield (f"{name}.{end}", block.get_submodule(end)), parts(block, *leading)
            return
    for child_name, child in _in_order(block):
        yield from sublayers(child, f"{name}.{child_name}")
    end, leading = _GATED
    if hasattr(block, end) and hasattr(block, leading[0]):
        yield (f"{name}.{end}", block.get_submodule(end)), parts(block, *leading)


def deep_branch(model: nn.Module) -> tuple[Named, tuple[nn.Module, ...]] | None:
    """What a UNet's last layer gets from below, as DeepCache cuts it; None if the network has no such layer.

    The last up block ends with a layer (a residual block and the attention that follows) that needs the first
    convolution's output and this one feature. All other blocks and layers lead to it alone.

    Returns:
        the last module of the layer before, which returns the feature, and the modules that lead to it.
    """
    if all(isinstance(getattr(model, name, None), nn.ModuleList) for name in _LEVELS):
        return _deep_level(model)
    chain = blocks(model)
    last = dict(chain).get(name := f"up_blocks.{len(getattr(model, 'up_blocks', ())) - 1}")
    layers = len(getattr(last, "resnets", None) or ())
    if last is None or layers < 2:
        return None
    lists = {kind: part for kind, part in last.named_children() if isinstance(part, nn.ModuleList)}
    rows = [kind for kind in in_order_of_use(last, lists) if len(lists[kind]) == layers]
    if not set(rows) <= _LAYER_PARTS:  # parts that get other features from below, such as ControlNet-XS's
        return None
    *leading, (end, module) = [
        (f"{name}.{kind}.{layer}", lists[kind][layer]) for layer in range(layers - 1) for kind in rows
    ]
    return (end, module), tuple(part for _, part in (*chain[:-1], *leading))


def _deep_level(model: nn.Module) -> tuple[Named, tuple[nn.Module, ...]] | None:
    """The same cut of Diffusion Policy's UNet (arXiv:2303.04137), whose levels are lists: two blocks, and a resampling.

    The last up level joins one feature from below with what a down level had before it was resampled. Down levels above
    that one may be left without a use for theirs.
    """
    down, _, up = (list(getattr(model, name)) for name in _LEVELS)
    if not 1 <= len(up) <= len(down) or not all(isinstance(level, nn.ModuleList) for level in (*down, *up)):
        return None
    joined = len(down) - len(up)
    chain = [item for name in _LEVELS for item in _items(model, name)]
    first = sum(len(level) for level in down[: joined + 1]) - 1  # the resampling of the level that is joined
    *leading, deep = chain[first : len(chain) - len(up[-1])]
    return deep, tuple(part for _, part in leading)


def is_attention(module: nn.Module) -> bool:
    """Whether a module projects to queries itself."""
    if isinstance(module, nn.MultiheadAttention):  # whose projection is no child
        return True
    return any(_QUERIES.search(name) for name, _ in module.named_children())


def is_feed_forward(name: str) -> bool:
    """Whether a module is a feed-forward layer, by the last part of its name."""
    last = name.rpartition(".")[2]
    return bool(_FEED_FORWARD.search(last)) and not _BESIDE_IT.search(last)


def in_order_of_use(module: nn.Module, names: Iterable[str]) -> list[str]:
    """Names of children in the order in which `forward` first mentions them; others stay where they are."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    mentioned = list(code.co_names) if code is not None else []
    names = list(names)
    places = [i for i, name in enumerate(names) if name in mentioned]
    for place, name in zip(places, sorted((names[i] for i in places), key=mentioned.index), strict=True):
        names[place] = name
    return names


def parts(block: nn.Module, *names: str) -> tuple[nn.Module, ...]:
    """Those of the children that exist."""
    return tuple(part for name in names if isinstance(part := getattr(block, name, None), nn.Module))


def _is_chain(name: str, child: nn.Module) -> bool:
    if isinstance(child, nn.ModuleList):
        return any(_holds_attention(block) for block in child) and not all(is_attention(block) for block in child)
    return name.endswith("_block") and _holds_attention(child)


def _holds_attention(block: nn.Module) -> bool:
    return any(is_attention(module) for module in block.modules())


def _items(model: nn.Module, name: str) -> list[Named]:
    """A block by its name, or those of a list, lists within it included."""
    child = getattr(model, name, None)
    if not isinstance(child, nn.Module):
        return []
    if not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
        return [(name, child)]
    return [item for inner in child._modules for item in _below(name, _items(child, inner))]


def _below(name: str, items: list[Named]) -> list[Named]:
    return [(f"{name}.{inner}", module) for inner, module in items]


def _in_order(block: nn.Module) -> Iterator[Named]:
    """Children in order of execution: UNet blocks define `attentions` first, yet run them in turn with `resnets`."""
    attentions, resnets = _items(block, "attentions"), _items(block, "resnets")
    # A mid block opens with one resnet more than it has attentions; others go resnet, attention, resnet, ...
    opening = resnets[:1] if len(resnets) > len(attentions) else []
    first, second = (attentions, resnets[1:]) if opening else (resnets, attentions)
    yield from opening
    for pair in zip_longest(first, second):
        yield from (item for item in pair if item is not None)
    yield from ((name, child) for name, child in block.named_children() if name not in ("attentions", "resnets"))
