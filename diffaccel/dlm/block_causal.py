"""Block-causal attention: positions see their own block and all earlier ones, as in LLaDA2, SDAR and BD3-LM.

The grid of blocks begins at position 0. Keys and values of a finished block never change again, which is what makes an
ordinary prefix cache exact (Arriola et al., "Block Diffusion", arXiv 2503.09573).
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_IMPLEMENTATIONS = ("sdpa", "eager")


def block_causal_mask(queries: Tensor, keys: Tensor, visible: Tensor | None, block_length: int) -> Tensor:
    """Who sees whom.

    A query always sees itself, so that padding, whose rows nobody reads, gets no softmax over nothing.

    Args:
        queries: positions (batch or 1, n).
        keys: positions (batch or 1, m).
        visible: bool (batch, m), False where a key is padding; None if none is.
        block_length: of the grid from position 0.

    Returns:
        bool (batch or 1, 1, n, m), True where the query sees the key.
    """
    q, k = queries[:, None, :, None], keys[:, None, None, :]
    seen = k // block_length <= q // block_length
    return seen if visible is None else seen & visible.bool()[:, None, None] | (q == k)


def as_given_to(model: Any, mask: Tensor) -> Tensor:
    """The mask in the form the model's attention adds or applies.

    Raises:
        ValueError: its attention takes no mask of this kind.
    """
    kind = model.config._attn_implementation
    if kind not in _IMPLEMENTATIONS:
        raise ValueError(
            f"attention {kind!r} of {type(model).__name__} takes no mask between blocks: call "
            'model.set_attn_implementation("sdpa") first'
        )
    if kind == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, torch.finfo(model.dtype).min)


class BlockCausal:
    """A model that is block-causal until `remove()`, or the end of the `with` block. See `block_causal`."""

    def __init__(self, model: PreTrainedModel, block_length: int) -> None:
        if not isinstance(model, PreTrainedModel):
            raise TypeError(f"{type(model).__name__} is no model of transformers")
        if isinstance(block_length, bool) or not isinstance(block_length, int) or block_length < 1:
            raise ValueError(f"block_length must be a whole number of at least 1, got {block_length!r}")
        as_given_to(model, torch.ones(1, 1, 1, 1, dtype=torch.bool))  # refused now rather than in the first forward
        self.block_length = block_length
        self._hook = model.register_forward_pre_hook(self._mask, with_kwargs=True)

    def remove(self) -> None:
        """Give the model its own mask back. Calling it again does nothing."""
        self._hook.remove()

    def __enter__(self) -> BlockCausal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _mask(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        visible = kwargs.get("attention_mask")
        if visible is not None and visible.ndim == 4:
            return None  # whoever made it knows the blocks
        tokens = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if len(args) > 1 or tokens is None:
            raise ValueError("give all arguments but the tokens by name: the mask must be found among them")
        cache, places = kwargs.get("past_key_values"), kwargs.get("position_ids")
        count = tokens.shape[1]
        if places is None:
            places = torch.arange(count, device=tokens.device)[None]
            places = places if cache is None else places + cache.get_seq_length()
        held = count if cache is None else cache.get_mask_sizes(count, 0)[0]
        keys = places if cache is None else torch.arange(held, device=tokens.device)[None]
        mask = block_causal_mask(places, keys, visible, self.block_length)
        return args, {**kwargs, "attention_mask": as_given_to(model, mask)}


def block_causal(model: PreTrainedModel, block_length: int) -> BlockCausal:
    """Make a native decoder-only model block-causal; a context manager, or a handle with `remove()`.

    Published block diffusion models of this kind are bidirectional as such, and the mask is given to them. A mask of
    four dimensions that a caller gives is left as it is.

    Args:
        model: a model of transformers with "sdpa" or "eager" attention.
        block_length: of the grid from position 0, the one it was trained with.

    Raises:
        TypeError: no model of transformers.
        ValueError: a block length below 1, or attention that takes no mask of this kind.
    """
    return BlockCausal(model, block_length)
