"""Block-sparse attention by compiled FlexAttention, which skips the key blocks that a pattern leaves out.

Our own call, since transformers' `flex_attention` compiles for dynamic shapes, which fails on CPUs at the second
length. Never uncompiled: it would compute all scores. xformers is not used: its version 0.0.35 has attention biases
and 2:4 sparsity, but no attention over arbitrary blocks (`BlockSparseTensor` is deprecated there, and a loop).
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from diffaccel.dlm.patterns import block_lists

_CUDA_TILE = 128  # of FlexAttention's kernels on CUDA, unless they are tuned by hand
_LENGTHS = 256  # a graph for every shape; torch.compile stops at 8 unless told otherwise


class Tiles(NamedTuple):
    """A pattern as FlexAttention's lists, for the tiles that a kernel takes or skips whole.

    Attributes:
        pattern: bool (batch, heads, n, n).
        totals: positions of each sequence, (batch,); the rest is padding.
        partial: counts and indices of the tiles in which every entry is looked up.
        whole: the same of those that are kept from end to end.
        block_size: positions of a block.
        size: positions of a tile, a multiple of block_size.
    """

    pattern: Tensor
    totals: Tensor
    partial: tuple[Tensor, Tensor]
    whole: tuple[Tensor, Tensor]
    block_size: int
    size: int


def missing(device: torch.device) -> str | None:
    """Why FlexAttention cannot be compiled for this device, with what to do; None if nothing is missing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "it needs the package triton: install it"
    if device.type != "cpu":
        return f"it has no kernels for devices of type {device.type}: choose backend 'gather'"
    compilers = (os.environ.get("CXX"), "g++", "clang++")
    if any(name and shutil.which(name) for name in compilers):
        return None
    return "on a CPU it needs a C++ compiler, and there is no g++ nor clang++: install one, or choose backend 'gather'"


def tiles(pattern: Tensor, totals: Tensor, block_size: int, size: int | None = None) -> Tiles:
    """Lists of a pattern (batch, heads, n, n) for sequences of totals (batch,) positions.

    `size`: positions of a tile, a multiple of block_size. By default a block, or on CUDA the least multiple that the
    kernels take; such a tile is skipped only if all blocks in it are.
    """
    if size is None:
        size = math.lcm(block_size, _CUDA_TILE) if pattern.device.type == "cuda" else block_size
    k = size // block_size
    n = -(-pattern.shape[-1] // k)
    more = n * k - pattern.shape[-1]
    padded = torch.nn.functional.pad(pattern, (0, more, 0, more))
    blocks = padded.unflatten(-1, (n, k)).unflatten(-3, (n, k)).transpose(-2, -3).flatten(-2)  # (..., n, n, k * k)
    ends = torch.arange(1, n + 1, device=pattern.device) * size
    whole = blocks.all(-1) & (ends <= totals[:, None])[:, None, None]
    return Tiles(pattern, totals, block_lists(blocks.any(-1) & ~whole), block_lists(whole), block_size, size)


def attend(query: Tensor, key: Tensor, value: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Attention (batch, heads, length, d) over the kept entries; query, key and value as `token_attention` has them.

    The first call for each shape compiles a kernel, which takes from 5 to 50 seconds on a CPU.

    Raises:
        RuntimeError: gradients are on; the lists serve forwards only.
    """
    if torch.is_grad_enabled() and query.requires_grad:
        raise RuntimeError("FlexAttention has no lists for gradients here: generate under torch.inference_mode()")
    with torch._dynamo.config.patch(recompile_limit=_LENGTHS, accumulated_recompile_limit=_LENGTHS):
        return _compiled()(query, key, value, *tiles, scale)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_attend, dynamic=False, fullgraph=True)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Tensor,
    totals: Tensor,
    partial: tuple[Tensor, Tensor],
    whole: tuple[Tensor, Tensor],
    block_size: int,
    size: int,
    scale: float,
) -> Tensor:
    last, length = pattern.shape[-1] - 1, query.shape[2]

    def keep(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        # Kernels ask about positions of their last tile that do not exist, hence the clamps.
        block = pattern[b, h, (i // block_size).clamp(max=last), (j // block_size).clamp(max=last)]
        return block & (j < totals[b])

    # keep() must agree with the lists: outside of compiled code FlexAttention does not read them.
    mask = BlockMask.from_kv_blocks(
        *partial, *whole, BLOCK_SIZE=size, mask_mod=keep, seq_lengths=(length, length), compute_q_blocks=False
    )
    grouped = query.shape[1] != key.shape[1]
    attended = flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)
    assert isinstance(attended, Tensor)
    return attended
