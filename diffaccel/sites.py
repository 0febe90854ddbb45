"""Sites: where the features of a network are. Found by structure, named, in order of execution.

Three levels: `"sublayer"` catches attention and MLP outputs before the gate, as TaylorSeer does; `"block"` catches
whole block outputs; `"model"` catches one feature, the output of the last block, before the final norm and projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from torch import nn

LEVELS = ("sublayer", "block", "model")

# Names under which diffusers' transformer blocks keep their feed-forward layers.
_FEED_FORWARD = ("ff", "ff_context", "ffn", "img_mlp", "txt_mlp", "mlp")


@dataclass(frozen=True, eq=False)
class Site:
    """A replaceable callable whose output is a feature.

    Attributes:
        name: dotted path below the network, as in `named_modules()`.
        owner: the module whose attribute is replaced.
        attr: the replaced attribute.
        idle: modules whose output nothing but this site needs; they do not run while the site is forecast.
    """

    name: str
    owner: nn.Module
    attr: str = "forward"
    idle: tuple[nn.Module, ...] = ()


def sites(model: nn.Module, level: str = "sublayer") -> list[Site]:
    """All sites of a network at one level, in order of execution.

    Raises:
        ValueError: an unknown level, or a network in which no site was found.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}: choose one of {', '.join(LEVELS)}")
    found = blocks(model)
    if level == "model":
        result = [Site(name, last, idle=tuple(module for _, module in found[:-1])) for name, last in found[-1:]]
    elif level == "block":
        result = [Site(name, block) for name, block in found]
    else:
        result = [site for name, block in found for site in sublayers(block, name)]
    if not result:
        raise ValueError(
            f"no {level} site was found in {type(model).__name__}, so nothing could be skipped: it has no list of "
            "transformer or UNet blocks. Pass the denoising network itself (pipe.transformer or pipe.unet)"
        )
    return result


def check_reached(model: nn.Module, missed: Sequence[Site], of: int, level: str) -> None:
    """Raise RuntimeError if a network did not call some of its `of` sites in a whole step."""
    if missed:
        raise RuntimeError(
            f"{type(model).__name__} did not call {missed[0].name} in a whole step ({len(missed)} of {of} sites "
            f"missed), so level={level!r} does not fit it: choose another level"
        )


def called_twice(model: nn.Module, site: Site, level: str) -> RuntimeError:
    """The error of a network that called a site twice in one step."""
    return RuntimeError(
        f"{type(model).__name__} called {site.name} twice in one step: two features, which level={level!r} cannot tell "
        "apart; choose another level"
    )


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The chain of blocks of a network, in order of execution: `(name, block)`.

    A UNet runs its down blocks, its mid block and its up blocks; a transformer its lists of blocks in the order in
    which they were defined. A list counts if its modules hold an attention layer.
    """
    if hasattr(model, "down_blocks") and hasattr(model, "up_blocks"):
        middle = [("mid_block", block) for block in _parts(model, "mid_block")]
        return [*_items(model, "down_blocks"), *middle, *_items(model, "up_blocks")]
    return [
        item
        for name, child in model.named_children()
        if isinstance(child, nn.ModuleList) and len(child) and all(_holds_attention(block) for block in child)
        for item in _items(model, name)
    ]


def sublayers(block: nn.Module, name: str) -> Iterator[Site]:
    """The attention, MLP and convolution branches inside one block whose outputs are added to its residual stream."""
    if _is_attention(block) or name.rpartition(".")[2] in _FEED_FORWARD:
        yield Site(name, block)
    elif _has(block, "attn", "proj_mlp", "proj_out"):
        # A parallel block (FLUX single stream): proj_out([attn, mlp]) is the one branch.
        yield Site(
            f"{name}.proj_out", block.get_submodule("proj_out"), idle=_parts(block, "attn", "proj_mlp", "act_mlp")
        )
    elif _has(block, "conv1", "conv2", "time_emb_proj"):
        # A residual convolution block: conv2 ends the branch that is added to the input.
        idle = _parts(block, "norm1", "conv1", "time_emb_proj", "norm2")
        yield Site(f"{name}.conv2", block.get_submodule("conv2"), idle=idle)
    else:
        for child_name, child in _in_order(block):
            yield from sublayers(child, f"{name}.{child_name}")


def _in_order(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children in order of execution: UNet blocks define `attentions` first, yet run them in turn with `resnets`."""
    attentions = _items(block, "attentions") if hasattr(block, "attentions") else []
    resnets = _items(block, "resnets") if hasattr(block, "resnets") else []
    # A mid block opens with one resnet more than it has attentions; others go resnet, attention, resnet, ...
    opening = resnets[:1] if len(resnets) > len(attentions) else []
    first, second = (attentions, resnets[1:]) if opening else (resnets, attentions)
    yield from opening
    for pair in zip_longest(first, second):
        yield from (item for item in pair if item is not None)
    yield from ((name, child) for name, child in block.named_children() if name not in ("attentions", "resnets"))


def _items(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    return [(f"{name}.{i}", block) for i, block in enumerate(getattr(model, name))]


def _has(block: nn.Module, *names: str) -> bool:
    return all(hasattr(block, name) for name in names)


def _parts(block: nn.Module, *names: str) -> tuple[nn.Module, ...]:
    return tuple(part for name in names if isinstance(part := getattr(block, name, None), nn.Module))


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "to_q") or hasattr(module, "to_qkv")


def _holds_attention(block: nn.Module) -> bool:
    return any(_is_attention(module) for module in block.modules())
