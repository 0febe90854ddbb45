"""SparseD's block patterns: which key blocks each query block of each head attends to. Tensors only, no model.

Wang et al., "SparseD: Sparse Attention for Diffusion Language Models", ICLR 2026, arXiv 2509.24014. Positions are cut
into blocks from position 0. The paper selects prompt and generation key blocks apart from each other; its released code
lets generation blocks compete in the selection of the prompt's. `form` tells the two apart everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FORMS = ("paper", "released")
_NEAR = 1e-9  # 0.28 * 25 is 7.000000000000001, which must not become 8
_SCORES = {"cpu": 2**20}  # scores held at a time, unless one query block has more: what a cache holds
_SCORES_ELSEWHERE = 2**24


@dataclass(frozen=True)
class Schedule:
    """When a run of so many steps is dense, and when sparse.

    Attributes:
        full_steps: dense steps at the start.
        pattern_step: the one of them that also builds the pattern, None if no sparse step follows.
        sparse_steps: the steps after them.
    """

    full_steps: int
    pattern_step: int | None
    sparse_steps: int


def schedule(steps: int, skip: float, form: str = "paper") -> Schedule:
    """The schedule of a run of `steps` whose first `skip` (a share, 0 to 1) are dense.

    Paper: max(1, floor(steps * skip)) dense steps, since a pattern needs one. Released: int(steps * skip) + 2.

    Raises:
        ValueError: no step, a share outside of 0 to 1, or an unknown form.
    """
    check_form(form)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= skip <= 1:
        raise ValueError(f"skip is the share of steps that stay dense, from 0 to 1, got {skip}")
    full = int(steps * skip) + 2 if form == "released" else max(1, math.floor(steps * skip + _NEAR))
    full = min(full, steps)
    return Schedule(full, full - 1 if full < steps else None, steps - full)


def first_generation_block(prompt: int, generated: int, block_size: int) -> int:
    """Index of the first block that starts in the generated part, or of the last block if none does.

    A block that holds prompt and generated positions thus counts as prompt.

    Raises:
        ValueError: a negative prompt, nothing generated, or a block size below 1.
    """
    if prompt < 0 or generated < 1:
        raise ValueError(f"a sequence has 0 or more prompt and 1 or more generated positions: {prompt}, {generated}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    return min(_blocks(prompt, block_size), _blocks(prompt + generated, block_size) - 1)


def build_pattern(
    query: Tensor,
    key: Tensor,
    scale: float,
    prompt: Sequence[int],
    generated: Sequence[int],
    block_size: int,
    rho: float,
    form: str = "paper",
) -> Tensor:
    """Keep the key blocks with the largest attention probability, averaged over the entries of a block.

    Row i of the batch holds a sequence of prompt[i] + generated[i] positions from 0 on; what follows is padding.
    Padding is left out of softmax and averages, its key blocks are off, its query blocks keep block 0. Counts of kept
    blocks are rho times those there are: rounded up, on each side, at least 1 (paper), or int(rho n) + 1 (released).
    Scores are held for a few query blocks at a time.

    Args:
        query: rotated queries, (batch, heads, length, d).
        key: rotated keys, (batch, kv_heads, length, d) with heads a multiple of kv_heads.
        scale: of the scores, usually d ** -0.5. The released code has heads ** -0.5 for LLaDA.
        prompt: prompt positions of each row.
        generated: generated positions of each row.
        block_size: positions of a block.
        rho: share of the key blocks to keep, above 0 and up to 1.
        form: "paper" or "released".

    Returns:
        bool (batch, heads, n, n) with n = ceil(length / block_size): query block by key block.

    Raises:
        ValueError: shapes that do not fit, a sequence longer than `length`, rho out of range, an unknown form.
    """
    check_form(form)
    check_rho(rho)
    first = [first_generation_block(p, g, block_size) for p, g in zip(prompt, generated, strict=True)]
    totals = [p + g for p, g in zip(prompt, generated, strict=True)]
    batch, heads, length, _ = query.shape
    _check_shapes(query, key, totals)
    n = _blocks(length, block_size)
    key = key.repeat_interleave(heads // key.shape[1], dim=1).float()

    device = query.device
    total = torch.tensor(totals, device=device)[:, None]
    start = torch.tensor(first, device=device)[:, None]
    block = torch.arange(n, device=device)
    in_prompt, real = block < start, block * block_size < total  # (batch, n)
    generation = real & ~in_prompt
    positions = torch.arange(length, device=device)
    valid = positions < total  # (batch, length)
    late = valid & (positions >= start * block_size)
    # entries of a key block: the paper's mean is over real ones
    entries = (total - block * block_size).clamp(1, block_size)
    before, after = in_prompt.sum(-1).tolist(), generation.sum(-1).tolist()

    pattern = torch.zeros(batch, heads, n, n, dtype=torch.bool, device=device)
    step = max(1, _SCORES.get(device.type, _SCORES_ELSEWHERE) // (batch * heads * block_size * length))
    for i in range(0, n, step):
        rows = slice(i * block_size, (i + step) * block_size)
        scores = query[:, :, rows].float() @ key.transpose(-1, -2) * scale
        queries = valid[:, None, rows, None]
        pooled = _pool(scores, valid, queries, block_size)  # (batch, heads, step, n)
        if form == "paper":
            pooled = pooled / entries[:, None, None]
            kept = _top(pooled, in_prompt, [_count(rho, p) for p in before])
            kept |= _top(pooled, generation, [_count(rho, g) for g in after])
        else:
            counts = [min(p + g, int((p + g) * rho) + 1) for p, g in zip(before, after, strict=True)]
            kept = _top(pooled, real, counts) & in_prompt[:, None, None]
            counts = [min(g, int(g * rho) + 1) for g in after]
            kept |= _top(_pool(scores, late, queries, block_size), generation, counts)
        pattern[:, :, i : i + step] = kept
    return torch.where(real[:, None, :, None], pattern, block == 0)


def density(pattern: Tensor) -> float:
    """Kept blocks over all blocks."""
    return float(pattern.double().mean())


def block_lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """A bool block mask (..., n_q, n_k) as lists: int32 counts (..., n_q) and key block indices (..., n_q, n_k).

    Kept blocks come first, in ascending order; the rest of a list is to be ignored.
    """
    order = mask.byte().argsort(dim=-1, descending=True, stable=True)
    return mask.sum(-1, dtype=torch.int32), order.int()


def token_mask(pattern: Tensor, block_size: int, length: int) -> Tensor:
    """A pattern (batch, heads, n, n) by position: bool (batch, heads, length, length), True where attended."""
    *outer, q, k = pattern.shape
    spread = pattern[..., :, None, :, None].expand(*outer, q, block_size, k, block_size)
    return spread.reshape(*outer, q * block_size, k * block_size)[..., :length, :length]


def fit(pattern: Tensor, n: int) -> Tensor:
    """A pattern (..., m, m) for n blocks: blocks of padding are cut off at the end, or added."""
    m = pattern.shape[-1]
    if n <= m:
        return pattern[..., :n, :n]
    wider = pattern.new_zeros(*pattern.shape[:-2], n, n)
    wider[..., :m, :m] = pattern
    wider[..., m:, 0] = True
    return wider


def check_form(form: str) -> None:
    """Raises ValueError unless `form` is one of `FORMS`."""
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}: choose one of {', '.join(FORMS)}")


def check_rho(rho: float) -> None:
    """Raises ValueError unless 0 < rho <= 1."""
    if not 0 < rho <= 1:
        raise ValueError(f"rho is the share of key blocks kept, above 0 and up to 1, got {rho}")


def _check_shapes(query: Tensor, key: Tensor, totals: Sequence[int]) -> None:
    batch, heads, length, width = query.shape
    if (key.shape[0], key.shape[2], key.shape[3]) != (batch, length, width) or heads % key.shape[1]:
        raise ValueError(f"queries {tuple(query.shape)} and keys {tuple(key.shape)} do not fit each other")
    if len(totals) != batch or max(totals) > length:
        raise ValueError(f"{batch} rows of {length} positions cannot hold sequences of {list(totals)} positions")


def _blocks(length: int, block_size: int) -> int:
    return -(-length // block_size)


def _count(rho: float, blocks: int) -> int:
    return min(blocks, max(1, math.ceil(rho * blocks - _NEAR)))


def _pool(scores: Tensor, keys: Tensor, queries: Tensor, block_size: int) -> Tensor:
    """Softmax over the True `keys` (batch, length), summed over blocks of True `queries` (batch, 1, rows, 1) and keys.

    scores: (batch, heads, rows, length). Returns (batch, heads, ceil(rows / block_size), ceil(length / block_size)),
    over block_size ** 2.
    """
    probabilities = scores.masked_fill(~keys[:, None, None], -torch.inf).softmax(-1).masked_fill(~queries, 0)
    rows, length = scores.shape[-2:]
    q, k = _blocks(rows, block_size), _blocks(length, block_size)
    padded = torch.nn.functional.pad(probabilities, (0, k * block_size - length, 0, q * block_size - rows))
    pooled: Tensor = padded.unflatten(-1, (k, block_size)).unflatten(-3, (q, block_size)).mean((-1, -3))
    return pooled


def _top(pooled: Tensor, candidates: Tensor, counts: Sequence[int]) -> Tensor:
    """True at the counts[b] largest of `pooled` (batch, heads, q, n) among candidates (batch, n); ties go left."""
    ranked = pooled.masked_fill(~candidates[:, None, None], -torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    count = torch.tensor(counts, device=pooled.device)[:, None, None, None]
    first = torch.arange(pooled.shape[-1], device=pooled.device) < count
    return torch.zeros_like(ranked, dtype=torch.bool).scatter(-1, order, first.expand_as(ranked))
