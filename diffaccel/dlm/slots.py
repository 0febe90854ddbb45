"""Keys and values of all positions in full-length slots, as a cache of transformers.

Models of transformers hand over keys that are already rotated, and a position never changes, so a slot written once is
right for good: computing some rows against the slots of all others needs no concatenation and no re-ordering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """The slots of one layer: keys and values (lanes, kv_heads, length, head_dim)."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Empty slots for all lanes."""
        lanes = self.cache.lanes or len(key_states)
        for name, states in (("keys", key_states), ("values", value_states)):
            heads, width = states.shape[1], states.shape[3]
            setattr(self, name, states.new_zeros(lanes, heads, self.cache.length, width))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write fresh rows into their slots, return all slots of the lanes in the forward."""
        cache = self.cache
        whole = cache.rows is None and key_states.shape[2] == cache.length
        if whole and cache.chosen is None and len(key_states) == (cache.lanes or len(key_states)):
            # All of it is new: the model's own tensors become the slots, nothing is copied.
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            return key_states, value_states
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        lanes = torch.arange(len(key_states), device=key_states.device) if cache.chosen is None else cache.chosen
        given = torch.arange(key_states.shape[2], device=key_states.device)
        rows = given.expand(len(lanes), -1) if cache.rows is None else cache.rows
        # Two index tensors around a slice: the slice's axis comes after them, (lanes, rows, heads, width).
        self.keys[lanes[:, None], :, rows] = key_states.transpose(1, 2)
        self.values[lanes[:, None], :, rows] = value_states.transpose(1, 2)
        if cache.chosen is None:
            return self.keys, self.values
        return self.keys[lanes], self.values[lanes]

    def grow(self, length: int) -> None:
        """More slots at the end, empty ones."""
        if self.is_initialized:
            more = (0, 0, 0, length - self.keys.shape[2])
            self.keys = torch.nn.functional.pad(self.keys, more)
            self.values = torch.nn.functional.pad(self.values, more)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Every query sees all slots."""
        return self.cache.length, 0

    def get_seq_length(self) -> int:
        """Nothing lies before the rows of a forward: their positions are given."""
        return 0

    def get_max_length(self) -> int:
        """Slots of a lane."""
        return self.cache.length


class SlotCache(Cache):
    """Slots of all layers. Say with `place` which rows the coming forward holds.

    Args:
        length: slots of a lane.
        lanes: lanes there will be; as many as the first forward holds if None.

    Attributes:
        rows: the positions (batch, n) of the coming forward's rows; None for all, in order.
        chosen: the lanes (batch,) of its batch; None for all, in order.
    """

    def __init__(self, length: int, lanes: int | None = None) -> None:
        super().__init__(layer_class_to_replicate=lambda: SlotLayer(self))
        if length < 1:
            raise ValueError(f"a slot cache needs at least one slot, got length={length}")
        self.length, self.lanes = length, lanes
        self.rows: Tensor | None = None
        self.chosen: Tensor | None = None

    def place(self, rows: Tensor | None, lanes: Tensor | None = None) -> None:
        """Say which rows and lanes the coming forward holds.

        Args:
            rows: positions (batch, n), an index may come twice to fill up; None for all slots in order.
            lanes: (batch,) lanes; None for all in order.
        """
        self.rows, self.chosen = rows, lanes

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Every query sees all slots, also before there are any layers."""
        return self.length, 0

    @property
    def is_filled(self) -> bool:
        """Whether there was a forward."""
        return bool(self.layers) and bool(self.layers[0].is_initialized)

    def fork(self, source: int, targets: Sequence[int]) -> None:
        """Give the lanes `targets` what the lane `source` holds."""
        if not targets or not self.is_filled:
            return
        for layer in self.layers:
            for slots in (layer.keys, layer.values):
                slots[list(targets)] = slots[source].clone()

    def grow(self, length: int) -> None:
        """Make room for a longer sequence.

        Raises:
            ValueError: it is shorter than now.
        """
        if length < self.length:
            raise ValueError(f"slots cannot be taken away: there are {self.length}, asked for {length}")
        for layer in self.layers:
            layer.grow(length)
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes that all slots take."""
        held = [slots for layer in self.layers if layer.is_initialized for slots in (layer.keys, layer.values)]
        return sum(slots.numel() * slots.element_size() for slots in held)

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refused: a recurrent state has no rows."""
        raise NotImplementedError(_RECURRENT)

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refused: a recurrent state has no rows."""
        raise NotImplementedError(_RECURRENT)


_RECURRENT = "rows can only be cached where every layer is attention; this model has recurrent or convolutional layers"
