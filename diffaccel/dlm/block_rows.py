"""Rows of later blocks against the slots of earlier ones, and the proof that a model allows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffaccel.dlm.block_causal import as_given_to, block_causal_mask
from diffaccel.dlm.slots import SlotCache


def cached_call(
    model: nn.Module, tokens: Tensor, visible: Tensor, first: int, cache: SlotCache, block_length: int
) -> dict[str, Any]:
    """Arguments of a forward that computes the rows from `first` on and takes the others from the slots.

    Args:
        model: the model.
        tokens: (batch, length) of all positions.
        visible: (batch, length), 0 at padding.
        first: a multiple of the block length.
        cache: as many slots as positions; told which rows are coming.
        block_length: of the grid from position 0.
    """
    every = torch.arange(tokens.shape[1], device=tokens.device)[None]
    rows = every[:, first:]
    cache.place(rows.expand(len(tokens), -1) if first else None)
    mask = block_causal_mask(rows, every, visible, block_length)
    return {
        "input_ids": tokens[:, first:],
        "position_ids": rows.expand(len(tokens), -1),
        "attention_mask": as_given_to(model, mask),
        "past_key_values": cache,
        "use_cache": True,
    }


@torch.no_grad()
def check_block_causal(model: Any, block_length: int) -> None:
    """Prove on texts of three random blocks that finished blocks can be taken from a cache.

    Raises:
        ValueError: a later block moves the logits of an earlier one, or rows computed against slots differ from those
            of a whole forward.
    """
    name, embeddings, length = type(model).__name__, model.get_input_embeddings(), 3 * block_length
    if model.training:
        raise ValueError(f"{name} is in training mode: call pipe.model.eval() first")
    made, early = torch.Generator().manual_seed(0), 2 * block_length
    tokens = torch.randint(embeddings.num_embeddings, (3, length), generator=made).to(embeddings.weight.device)
    tokens[1, :early], tokens[2, :block_length] = tokens[0, :early], tokens[0, :block_length]  # alike up to there
    visible, places = torch.ones_like(tokens), torch.arange(length, device=tokens.device).expand(3, -1)
    whole = model(tokens, attention_mask=visible, position_ids=places).logits
    apart = torch.cat((whole[0, :early] - whole[1, :early], whole[0, :block_length] - whole[2, :block_length]))
    unit = torch.finfo(model.dtype).eps
    if (moved := _relative(apart, whole)) > 8 * unit:
        raise ValueError(
            f"{name} is not block-causal as it is called here: a later block moved earlier logits by {moved:.2g} of "
            "the largest, so finished blocks cannot be taken from a cache. If it was trained with a block-causal mask, "
            "as LLaDA2 was, give it that mask: diffaccel.dlm.block_causal.block_causal(pipe.model, "
            f"block_length={block_length}). What the pipeline gives will then change"
        )
    cache = SlotCache(early)
    model(**cached_call(model, tokens[:, :early], visible[:, :early], 0, cache, block_length))
    cache.grow(length)
    rows = model(**cached_call(model, tokens, visible, block_length, cache, block_length)).logits
    if (moved := _relative(whole[:, block_length:] - rows, whole)) > unit**0.5:
        raise ValueError(
            f"{name} gives other logits with a cache than without (they differ by {moved:.2g} of the largest): inside "
            "a block its positions do not all see each other, or its attention does not follow past_key_values, "
            "position_ids and a mask of four dimensions"
        )


def _relative(difference: Tensor, logits: Tensor) -> float:
    return float(difference.abs().max() / logits.abs().max())
