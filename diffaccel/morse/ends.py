"""The new first and last layers of a Dot: they let a body made for one resolution work at a coarser one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

_GROUPS = 32  # of channels that are normalized together, where the channels can be divided so


@dataclass
class Notes:
    """What the layers of one Dot tell each other during one call, past the body's own forward.

    Attributes:
        t_s: time of the last Dash step [B], in the unit the time projection takes.
        time: embedding of both times [B, W].
        fine: features of the entry, finest first, for the exit.
        grid: rows and columns of image tokens that come as a sequence; None where pictures come.
        positions: what is added to the merged tokens [1, L, W]; None where the body adds positions itself.
        patches: Dash's patch embedding, asked for positions only. Kept between calls, as is
        known: the ids of image tokens that were looked at last, their version, and their grid.
    """

    t_s: Tensor | None = None
    time: Tensor | None = None
    fine: list[Tensor] = field(default_factory=list)
    grid: tuple[int, int] | None = None
    positions: Tensor | None = None
    patches: nn.Module | None = None
    known: tuple[Tensor, int, tuple[int, int]] | None = None

    def clear(self) -> None:
        """Forget the call."""
        self.t_s = self.time = self.grid = self.positions = None
        self.fine = []


class TwoTimes(nn.Module):
    """In the place of a body's time embedding: its embedding of t, corrected by that of the last Dash step.

    The correction is a new perceptron on both embeddings whose last layer starts at zero.
    """

    def __init__(self, embedding: nn.Module, projection: nn.Module, correction: nn.Module, notes: Notes) -> None:
        super().__init__()
        self.embedding, self.notes = embedding, notes
        self.others = (projection, correction)  # in a tuple: they are registered elsewhere

    def forward(self, projected: Tensor, condition: Tensor | None = None) -> Tensor:
        """Embedding [B, W] of projected times [B, P]."""
        projection, correction = self.others
        assert self.notes.t_s is not None
        now: Tensor = self._embed(projected, condition)
        then = self._embed(projection(self.notes.t_s).to(projected.dtype), condition)
        self.notes.time = now + correction(torch.cat([now, then], dim=1))
        return self.notes.time

    def _embed(self, projected: Tensor, condition: Tensor | None) -> Tensor:
        embedded: Tensor = self.embedding(projected) if condition is None else self.embedding(projected, condition)
        return embedded


def correction(width: int) -> nn.Sequential:
    """The perceptron of `TwoTimes` for embeddings of this width."""
    return nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), zeroed(nn.Linear(width, width)))


class PyramidEntry(nn.Module):
    """In the place of a UNet's first convolution: light down blocks, one for each halving.

    Args:
        channels: of the input.
        widths: channels at each new resolution, finest first; none for no halving.
        inner: channels the body takes.
        time: width of the time embedding.
        notes: shared with the exit.
    """

    def __init__(self, channels: int, widths: Sequence[int], inner: int, time: int, notes: Notes) -> None:
        super().__init__()
        self.notes = notes
        after = [*widths, inner]
        self.first = nn.Conv2d(channels, after[0], 3, padding=1)
        self.layers = nn.ModuleList(_residual(width, width, time) for width in widths)
        self.halvings = nn.ModuleList(
            Downsample2D(width, use_conv=True, out_channels=wide, name="op")
            for width, wide in zip(widths, after[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, inner, H / 2^m, W / 2^m] of [B, channels, H, W]."""
        h: Tensor = self.first(x)
        for layer, halving in zip(self.layers, self.halvings, strict=True):
            h = layer(h, self.notes.time)
            self.notes.fine.append(h)
            h = halving(h)
        return h


class PyramidExit(nn.Module):
    """In the place of a UNet's last convolution: light up blocks that also see the entry's features. Zero at first.

    Args:
        channels: of the output.
        widths, inner, time, notes: as of the entry.
    """

    def __init__(self, channels: int, widths: Sequence[int], inner: int, time: int, notes: Notes) -> None:
        super().__init__()
        self.notes = notes
        before = [*widths[1:], inner] if widths else []
        self.doublings = nn.ModuleList(
            Upsample2D(wide, use_conv_transpose=True, out_channels=width)
            for width, wide in zip(widths, before, strict=True)
        )
        self.layers = nn.ModuleList(_residual(2 * width, width, time) for width in widths)
        width = widths[0] if widths else inner
        # A body normalizes before its last convolution.
        self.norm = nn.GroupNorm(math.gcd(_GROUPS, width), width) if widths else None
        self.last = zeroed(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, h: Tensor) -> Tensor:
        """Output [B, channels, H, W] of features [B, inner, H / 2^m, W / 2^m]."""
        for doubling, layer in zip(reversed(self.doublings), reversed(self.layers), strict=True):
            h = layer(torch.cat([doubling(h), self.notes.fine.pop()], dim=1), self.notes.time)
        if self.norm is not None:
            h = F.silu(self.norm(h))
        out: Tensor = self.last(h)
        return out


class TokenEntry(nn.Module):
    """In the place of a transformer's patch embedding: patches, of which each token of the body has s x s.

    Args:
        channels: of the input.
        patch: side of Dash's patches.
        width: channels of the features of each patch.
        inner: width of the body's tokens.
        merged: s.
        notes: shared with the exit.
    """

    def __init__(self, channels: int, patch: int, width: int, inner: int, merged: int, notes: Notes) -> None:
        super().__init__()
        self.notes = notes
        self.first = nn.Conv2d(channels, width, patch, stride=patch)
        self.layer = nn.Conv2d(width, width, 3, padding=1)
        self.merge = nn.Conv2d(width, inner, merged, stride=merged)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L / s^2, inner] of pictures [B, channels, H, W] or of a grid of tokens [B, L, channels]."""
        if self.notes.grid is not None:
            x = x.transpose(1, 2).unflatten(2, self.notes.grid)
        h = self.first(x)
        h = h + self.layer(F.silu(h))
        self.notes.fine.append(h)
        tokens: Tensor = self.merge(F.silu(h)).flatten(2).transpose(1, 2)
        return tokens if self.notes.positions is None else tokens + self.notes.positions.to(tokens.dtype)


class TokenExit(nn.Module):
    """In the place of a transformer's last layer: each token becomes s x s patches again. Zero at first.

    Args:
        channels: of the output, of a pixel.
        patch, width, inner, merged, notes: as of the entry.
    """

    def __init__(self, channels: int, patch: int, width: int, inner: int, merged: int, notes: Notes) -> None:
        super().__init__()
        self.notes, self.merged = notes, merged
        self.split = nn.Linear(inner, merged**2 * width)
        self.layer = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = zeroed(nn.Conv2d(width, patch**2 * channels, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """The values of all patches [B, L, patch * patch * channels] of tokens [B, L / s^2, inner]."""
        fine = self.notes.fine.pop()
        rows, columns = (side // self.merged for side in fine.shape[2:])
        h = F.pixel_shuffle(self.split(tokens).transpose(1, 2).unflatten(2, (rows, columns)), self.merged)
        h = self.layer(F.silu(torch.cat([h, fine], dim=1)))
        values: Tensor = self.last(F.silu(h)).flatten(2).transpose(1, 2)
        return values


def zeroed(layer: Layer) -> Layer:
    """The layer, with all its weights zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _residual(channels: int, out: int, time: int) -> ResnetBlock2D:
    """diffusers' residual block, which takes the time embedding, without attention."""
    return ResnetBlock2D(
        in_channels=channels,
        out_channels=out,
        temb_channels=time,
        groups=math.gcd(_GROUPS, channels),
        groups_out=math.gcd(_GROUPS, out),
        eps=1e-6,
    )
