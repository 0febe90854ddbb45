"""How the body of a Dot is made from a Dash network: what is put into which place, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor, nn

from diffaccel.morse.ends import Notes, PyramidEntry, PyramidExit, TokenEntry, TokenExit, TwoTimes, correction

Arguments = dict[str, Any]  # a network's, by name


@dataclass(frozen=True)
class Family:
    """Dash networks whose bodies are made alike.

    Attributes:
        sample: name of the argument that takes the sample.
        ends: attributes that hold the first and the last layer.
        blocks: attributes that hold lists of blocks, in order of execution, from which blocks can be left out.
        time: modules with an embedding of the time, in each the attribute of the projection and of the embedding.
        install: puts entry and exit into a body: (body, channels in, channels out, m, widths, width of the time
            embedding, notes).
        prepare: arguments of a call as the body takes them: (body, sample, conditioning, merged side, notes).
        time_scale: what the network multiplies its time with before it projects it.
        axis: of the sample's channels.
    """

    sample: str
    ends: tuple[str, str]
    blocks: tuple[str, ...]
    time: Callable[[nn.Module], list[tuple[nn.Module, str, str]]]
    install: Callable[..., None]
    prepare: Callable[..., Arguments]
    time_scale: float = 1.0
    axis: int = 1


def family(name: str) -> Family:
    """The family of a network class. Raises ValueError if there is none."""
    if name not in FAMILIES:
        raise ValueError(
            f"a Dot cannot be made for {name}, neither kind='shared' nor kind='independent': where its sample enters "
            f"and leaves is known for {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def skeleton(name: str, config: Mapping[str, Any], empty: bool = True) -> nn.Module:
    """A network of this class and config in eval mode, its weights on the meta device if `empty`."""
    cls = getattr(diffusers, name)
    if not empty:
        made: nn.Module = cls.from_config(dict(config))
        return made.eval()
    with init_empty_weights():
        made = cls.from_config(dict(config))
    return made.eval()


def channels(config: Mapping[str, Any]) -> tuple[int, int]:
    """Channels of a network's sample, and of the part of its output that a Dot corrects (not a learned variance)."""
    taken = int(config["in_channels"])
    given = int(config["out_channels"] or taken)
    return taken, given // 2 if given == 2 * taken else given


def keep_blocks(body: nn.Module, names: tuple[str, ...], kept: list[int]) -> None:
    """Leave out all blocks but these; indices count over all lists in order of execution.

    Raises:
        ValueError: there is no such block, or this network's blocks cannot be left out.
    """
    lists = {name: list(getattr(body, name)) for name in names}
    total = sum(len(blocks) for blocks in lists.values())
    if not names:
        raise ValueError(f"blocks: no block can be left out of {type(body).__name__}, whose blocks pass on skips")
    if not kept or sorted(set(kept)) != list(kept) or not 0 <= kept[0] <= kept[-1] < total:
        raise ValueError(
            f"blocks: {kept} are not rising indices of blocks of {type(body).__name__}, from 0 to {total - 1}"
        )
    offset = 0
    for name, blocks in lists.items():
        setattr(body, name, nn.ModuleList(block for i, block in enumerate(blocks, offset) if i in kept))
        offset += len(blocks)
    if any(lists[name] and not len(getattr(body, name)) for name in names[:1]):
        raise ValueError(f"blocks: {kept} keep none of {names[0]}, of which {type(body).__name__} needs one")
    last = lists[names[-1]]
    if any(getattr(block, "context_pre_only", False) for block in last) and total - 1 not in kept:
        raise ValueError(f"blocks: the last block of {type(body).__name__}, {total - 1}, has to be kept")


def embed_two_times(body: nn.Module, family: Family, notes: Notes) -> nn.Module:
    """Have a body embed the time of the last Dash step, too. Returns the new module."""
    new = correction(time_width(body, family))
    for owner, projection, name in family.time(body):
        setattr(owner, name, TwoTimes(getattr(owner, name), getattr(owner, projection), new, notes))
    return new


def time_width(body: nn.Module, family: Family) -> int:
    """Width of a body's time embedding."""
    owner, _, name = family.time(body)[0]
    return int(getattr(owner, name).linear_2.out_features)


def check_sides(name: str, sides: tuple[int, ...], divisor: int) -> None:
    """Raise ValueError if the sides of a sample cannot be divided, with the next ones that can."""
    if any(side % divisor for side in sides):
        below = [side // divisor * divisor for side in sides]
        above = [-(-side // divisor) * divisor for side in sides]
        valid = [below, above] if min(below) else [above]
        given, *wanted = ["x".join(map(str, size)) for size in (sides, *valid)]
        raise ValueError(
            f"this Dot of {name} needs samples whose sides can be divided by {divisor}, not {given}: the next valid "
            f"{'sizes are' if len(wanted) > 1 else 'size is'} {' and '.join(wanted)}"
        )


def _install_unet(
    body: Any, given: int, returned: int, m: int, widths: tuple[int, ...], time: int, notes: Notes
) -> None:
    if any(hasattr(block, "skip_conv") for block in [*body.down_blocks, *body.up_blocks]):
        raise ValueError("a Dot cannot be made for UNets whose blocks have skips of the sample (SkipDownBlock2D)")
    if len(widths) < m:
        raise ValueError(f"widths: {m} new levels need as many widths, got {list(widths)}")
    inner, outer = body.conv_in.out_channels, body.conv_out.in_channels
    body.conv_in = PyramidEntry(given, widths[:m], inner, time, notes)
    body.conv_out = PyramidExit(returned, widths[:m], outer, time, notes)


def _prepare_unet(body: Any, x: Tensor, conditioning: Arguments, merged: int, notes: Notes) -> Arguments:
    halvings = sum(bool(getattr(block, "upsamplers", None)) for block in body.up_blocks)
    check_sides(type(body).__name__, tuple(x.shape[2:]), merged * 2**halvings)
    return conditioning


def _install_tokens(first: str, last: str) -> Callable[..., None]:
    def install(body: Any, given: int, returned: int, m: int, widths: tuple[int, ...], time: int, notes: Notes) -> None:
        if not widths:
            raise ValueError("widths: the features of each patch need a width, got none")
        embedder, patch = getattr(body, first), int(body.config.patch_size)
        setattr(body, first, TokenEntry(given, patch, widths[0], body.inner_dim, 2**m, notes))
        setattr(body, last, TokenExit(returned, patch, widths[0], body.inner_dim, 2**m, notes))
        body.out_channels = returned
        if not hasattr(embedder, "cropped_pos_embed"):
            return
        embedder.proj = _Nothing(body.inner_dim, patch)
        notes.patches = embedder

    return install


class _Nothing(nn.Module):
    """In the place of the convolution of a PatchEmbed, which then returns positions alone."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.width, self.patch = width, patch

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1, self.width, x.shape[2] // self.patch, x.shape[3] // self.patch)


def _prepare_patches(body: Any, x: Tensor, conditioning: Arguments, merged: int, notes: Notes) -> Arguments:
    patch = int(body.config.patch_size)
    check_sides(type(body).__name__, tuple(x.shape[2:]), patch * merged)
    grid = (x.shape[2] // patch, x.shape[3] // patch)
    assert notes.patches is not None
    positions = notes.patches(x[:1]).transpose(1, 2).unflatten(2, grid)
    notes.positions = F.avg_pool2d(positions, merged).flatten(2).transpose(1, 2)
    return conditioning


def _prepare_flux(body: Any, x: Tensor, conditioning: Arguments, merged: int, notes: Notes) -> Arguments:
    ids = conditioning["img_ids"]
    notes.grid = _grid(ids, notes) if ids.ndim == 2 else _grid(ids[0], notes)
    ids = ids if ids.ndim == 2 else ids[0]
    check_sides(type(body).__name__, notes.grid, merged)
    if merged > 1:
        coarse = F.avg_pool2d(ids.float().T.unflatten(1, notes.grid), merged)
        ids = coarse.flatten(1).T
    return {**conditioning, "img_ids": ids}


def _grid(ids: Tensor, notes: Notes) -> tuple[int, int]:
    """Rows and columns of image tokens with ids [L, 3], looked up once for each tensor of ids."""
    if notes.known is not None and notes.known[0] is ids and notes.known[1] == ids._version:
        return notes.known[2]
    places = ids[:, 1:].tolist()
    columns = sum(row == places[0][0] for row, _ in places)
    rows = len(places) // columns
    top, left = places[0]
    wanted = [[top + i, left + j] for i in range(rows) for j in range(columns)]
    if places != wanted or bool((ids[:, 0] != ids[0, 0]).any()):
        raise ValueError("img_ids: a Dot for Flux takes the tokens of one picture, row by row, and no others")
    notes.known = (ids, ids._version, (rows, columns))
    return rows, columns


def _of_unet(body: nn.Module) -> list[tuple[nn.Module, str, str]]:
    return [(body, "time_proj", "time_embedding")]


def _of_text(body: Any) -> list[tuple[nn.Module, str, str]]:
    return [(body.time_text_embed, "time_proj", "timestep_embedder")]


def _of_blocks(body: Any) -> list[tuple[nn.Module, str, str]]:
    return [(block.norm1.emb, "time_proj", "timestep_embedder") for block in body.transformer_blocks]


_UNET = Family("sample", ("conv_in", "conv_out"), (), _of_unet, _install_unet, _prepare_unet)
FAMILIES = {
    "UNet2DModel": _UNET,
    "UNet2DConditionModel": _UNET,
    "FluxTransformer2DModel": Family(
        "hidden_states",
        ("x_embedder", "proj_out"),
        ("transformer_blocks", "single_transformer_blocks"),
        _of_text,
        _install_tokens("x_embedder", "proj_out"),
        _prepare_flux,
        time_scale=1000.0,
        axis=2,
    ),
    "DiTTransformer2DModel": Family(
        "hidden_states",
        ("pos_embed", "proj_out_2"),
        ("transformer_blocks",),
        _of_blocks,
        _install_tokens("pos_embed", "proj_out_2"),
        _prepare_patches,
    ),
    "SD3Transformer2DModel": Family(
        "hidden_states",
        ("pos_embed", "proj_out"),
        ("transformer_blocks",),
        _of_text,
        _install_tokens("pos_embed", "proj_out"),
        _prepare_patches,
    ),
}
"""What Dots can be made for, by class."""
