"""Sites: where the features of a network are. Found by structure, named, in order of execution.

Four levels: `"sublayer"` catches attention and MLP outputs before the gate, as TaylorSeer does; `"block"` catches
whole block outputs; `"model"` catches one feature, the output of the last block, before the final norm and projection;
`"deep"` catches what the last layer of a UNet gets from below, as DeepCache does, so that this layer always runs.
Two more are for some networks only: `"output"` is what diffusers' lite mode catches, where a network ends in a
`proj_out` or a `head`, what that returns; `"branch"` catches what each branch of a layer adds (`diffaccel.branches`),
as BAC does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from diffaccel.branches import layers
from diffaccel.structure import blocks, deep_branch, sublayers, unwrapped

logger = logging.getLogger("diffaccel")


@dataclass(frozen=True, eq=False)
class Site:
    """A replaceable callable whose output is a feature.

    Attributes:
        name: dotted path below the network, as in `named_modules()`.
        owner: the module whose attribute is replaced.
        attr: the replaced attribute.
        idle: modules whose output nothing but this site needs; they do not run while the site is forecast.
        kind: at level "branch", what the site is: "sa", "ca" or "ffn".
    """

    name: str
    owner: nn.Module
    attr: str = "forward"
    idle: tuple[nn.Module, ...] = ()
    kind: str = ""


def sites(model: nn.Module, level: str = "sublayer") -> list[Site]:
    """All sites of a network at one level, in order of execution.

    Raises:
        ValueError: an unknown level, or a network in which no site was found.
    """
    if level not in (*LEVELS, *_FURTHER):
        raise ValueError(f"unknown level {level!r}: choose one of {', '.join(LEVELS)}")
    model = unwrapped(model)
    result = list({**_FIND, **_FURTHER}[level](model))
    if not result and level == "deep":
        raise ValueError(
            f"no deep site was found in {type(model).__name__}: that level is for UNets whose last up block has two "
            "layers or more. Choose another level"
        )
    if not result and level == BRANCH and (blocks(model) or deep_branch(model)):
        raise ValueError(
            f"{type(model).__name__} has no attention and no feed-forward layers, so nothing of it can be cached block "
            "by block: it is a convolutional network. method='taylorseer' with level='deep' works on UNets: their last "
            "layers run, what they get from below is forecast"
        )
    if not result and level == OUTPUT and blocks(model):
        raise ValueError(
            f"{type(model).__name__} ends neither in a proj_out nor in a head, which level='output' (lite mode) "
            "forecasts: choose level='model', which forecasts the output of the last block"
        )
    if not result:
        raise ValueError(
            f"no {level} site was found in {type(model).__name__}, so nothing could be skipped: it has no list of "
            "transformer or UNet blocks. Pass the denoising network itself (pipe.transformer or pipe.unet)"
        )
    return result


def levels(model: nn.Module) -> list[str]:
    """Those of `LEVELS` at which a network has sites."""
    model = unwrapped(model)
    return [level for level, find in _FIND.items() if next(find(model), None) is not None]


def check_reached(model: nn.Module, missed: Sequence[Site], of: int, level: str) -> None:
    """Raise RuntimeError if a network did not call some of its `of` sites in a whole step."""
    if missed:
        raise RuntimeError(
            f"{type(model).__name__} did not call {missed[0].name} in a whole step ({len(missed)} of {of} sites "
            f"missed), so level={level!r} does not fit it: choose another level"
        )


def say_unused(model: nn.Module, missed: Sequence[Site], of: int) -> None:
    """Say which of its `of` sites a network has and does not use, such as those of sound in a run without any."""
    logger.warning(
        "%s did not call %d of %d sites, %s first: nothing is forecast there",
        type(model).__name__,
        len(missed),
        of,
        missed[0].name,
    )


def check_last(model: nn.Module, late: str | None, level: str) -> None:
    """Raise RuntimeError if a network ran the module named `late`, which a site makes idle, after that site."""
    if late is not None:
        raise RuntimeError(
            f"{type(model).__name__} ran {late} after the last site, so level={level!r} does not fit it: choose "
            "another level"
        )


def called_more(model: nn.Module, site: Site, level: str) -> RuntimeError:
    """The error of a network that called a site more often in a skipped step than in a computed one."""
    return RuntimeError(
        f"{type(model).__name__} called {site.name} more often in one step than in the step before, so there is "
        f"nothing to forecast it from: level={level!r} does not fit it; choose another level"
    )


def called_twice(model: nn.Module, site: Site, level: str) -> RuntimeError:
    """The error of a network that called a site twice in one step."""
    return RuntimeError(
        f"{type(model).__name__} called {site.name} twice in one step: two features, which level={level!r} cannot tell "
        "apart; choose another level"
    )


def _whole(model: nn.Module) -> Iterator[Site]:
    """The output of the last block; no other block is needed while it is forecast."""
    chain = blocks(model)
    for name, last in chain[-1:]:
        yield Site(name, last, idle=tuple(module for _, module in chain[:-1]))


def _blocks(model: nn.Module) -> Iterator[Site]:
    for name, block in blocks(model):
        yield Site(name, block)


def _sublayers(model: nn.Module) -> Iterator[Site]:
    for name, block in blocks(model):
        for (path, owner), idle in sublayers(block, name):
            yield Site(path, owner, idle=idle)


def _deep(model: nn.Module) -> Iterator[Site]:
    if (branch := deep_branch(model)) is not None:
        (name, owner), idle = branch
        yield Site(name, owner, idle=idle)


_HEADS = ("head", "output_proj")


def _output(model: nn.Module) -> Iterator[Site]:
    """What the final projections return; some networks have several, for sound beside pictures.

    Policies end in a `head`, or an `output_proj`. They are small, so nothing before it runs, embeddings included.
    """
    children = dict(model.named_children())
    last = next((name for name in _HEADS if name in children), None)
    if last is not None and blocks(model):
        parts = [part for name, part in children.items() if name != last]
        yield Site(last, children[last], idle=tuple(called for part in parts for called in _called(part)))
        return
    heads = [(name, child) for name, child in children.items() if "proj_out" in name]
    idle = tuple(module for _, module in blocks(model))
    for i, (name, head) in enumerate(heads):
        yield Site(name, head, idle=() if i else idle)


def _called(part: nn.Module) -> Iterator[nn.Module]:
    """A module as it is called: of a list, which is not, what it holds."""
    if isinstance(part, nn.ModuleList | nn.ModuleDict):
        for inner in part.children():
            yield from _called(inner)
    else:
        yield part


def _branches(model: nn.Module) -> Iterator[Site]:
    for layer in layers(model):
        for branch in layer.branches:
            yield Site(branch.name, branch.owner, branch.attr, branch.idle, branch.kind)


_FIND: Mapping[str, Callable[[nn.Module], Iterator[Site]]] = MappingProxyType(
    {"sublayer": _sublayers, "block": _blocks, "model": _whole, "deep": _deep}
)
LEVELS = tuple(_FIND)
# Not among LEVELS: most networks have no output that can be told, and branches are of use where each has a plan.
OUTPUT, BRANCH = "output", "branch"
_FURTHER: Mapping[str, Callable[[nn.Module], Iterator[Site]]] = MappingProxyType({OUTPUT: _output, BRANCH: _branches})
