"""Block-sparse attention in plain PyTorch: by a mask over positions, or by gathering the blocks that are kept.

Both take queries (batch, heads, length, d), keys and values (batch, kv_heads, length, d), a pattern as `build_pattern`
makes it, and the positions of each sequence; what follows those is padding. Both return (batch, heads, length, d).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from diffaccel.dlm.patterns import block_lists, token_mask

_MASKED = 2**28  # entries of a mask that are held at a time, unless one head has more
_GATHERED = 2**22  # numbers gathered at a time, unless one query block needs more


def token_attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: Tensor, totals: Tensor, block_size: int, scale: float
) -> Tensor:
    """By a mask over positions: the exact reference. All scores are computed, so it is slower than dense attention.

    Args:
        query: (batch, heads, length, d).
        key: (batch, kv_heads, length, d).
        value: (batch, kv_heads, length, d).
        pattern: bool (batch, heads, n, n).
        totals: positions of each sequence, (batch,).
        block_size: positions of a block.
        scale: of the scores.
    """
    batch, heads, length, _ = query.shape
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    valid = torch.arange(length, device=query.device) < totals[:, None]
    step = max(1, _MASKED // (batch * length * length))
    parts = []
    for h in range(0, heads, step):
        some = slice(h, h + step)
        mask = token_mask(pattern[:, some], block_size, length) & valid[:, None, None]
        parts.append(scaled_dot_product_attention(query[:, some], key[:, some], value[:, some], mask, scale=scale))
    return torch.cat(parts, dim=1)


def gathered_attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: Tensor, totals: Tensor, block_size: int, scale: float
) -> Tensor:
    """By copying the kept key blocks of each query block side by side: only scores of kept blocks are computed.

    Arguments as `token_attention` has them. It pays because patterns keep as many blocks in nearly every row; where a
    row keeps fewer than the most, the rest is masked.
    """
    batch, heads, length, _ = query.shape
    n, size, groups = pattern.shape[-1], block_size, heads // key.shape[1]
    counts, indices = block_lists(pattern)
    most = int(counts.max())
    indices = indices[..., :most].long()  # (batch, heads, n, most)
    queries, keys, values = (pad(x, (0, 0, 0, n * size - length)).unflatten(2, (n, size)) for x in (query, key, value))
    lane = torch.arange(batch, device=query.device)[:, None, None, None]
    head = torch.arange(heads, device=query.device)[:, None, None] // groups
    slot, within = torch.arange(most, device=query.device), torch.arange(size, device=query.device)
    even = bool((counts == most).all()) and bool((totals == n * size).all())

    attended = torch.empty_like(queries)
    step = max(1, _GATHERED // (batch * heads * most * size * query.shape[-1]))
    for i in range(0, n, step):
        block = indices[:, :, i : i + step]
        q = queries[:, :, i : i + step]
        k, v = (x[lane, head, block].flatten(3, 4).flatten(0, 2)[:, None] for x in (keys, values))
        mask = None
        if not even:
            real = block[..., None] * size + within < totals[:, None, None, None, None]
            seen = real & (slot < counts[:, :, i : i + step, None])[..., None]
            mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, -torch.inf)
            # A view of one row for all queries of a block: bool masks are written out in full, and take twice as long.
            mask = mask.flatten(3).flatten(0, 2)[:, None, None].expand(-1, 1, size, -1)
        found = scaled_dot_product_attention(q.flatten(0, 2)[:, None], k, v, mask, scale=scale)
        attended[:, :, i : i + step] = found.view(q.shape)
    return attended.flatten(2, 3)[:, :, :length]
