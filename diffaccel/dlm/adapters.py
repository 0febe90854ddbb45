"""A network as the decoding loop asks it: tokens and rows in, logits of the rows that are needed out."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from diffaccel.dlm.slots import SlotCache


class Denoiser:
    """A decoder-only model of transformers, run bidirectionally. The model and its configuration are left as they are.

    Args:
        model: the model, with its head.
        shift: as in `Conventions`.

    Raises:
        TypeError: no model of transformers, or one that takes no positions.
    """

    def __init__(self, model: PreTrainedModel, shift: bool = False) -> None:
        self.model, self.shift = model, shift
        takes = inspect.signature(model.forward).parameters if isinstance(model, PreTrainedModel) else {}
        if not {"input_ids", "position_ids", "past_key_values"} <= takes.keys():
            raise TypeError(
                f"{type(model).__name__} is no decoder-only model of transformers: a diffusion language model needs a "
                "forward that takes input_ids, position_ids and past_key_values, such as LlamaForCausalLM's"
            )
        self._keeps = "logits_to_keep" in takes

    def rows_of(self, positions: Tensor) -> Tensor:
        """The rows whose logits predict these positions."""
        return (positions - 1).clamp(min=0) if self.shift else positions

    @torch.no_grad()
    def __call__(
        self,
        tokens: Tensor,
        keep: Tensor | int,
        rows: Tensor | None = None,
        visible: Tensor | None = None,
        cache: SlotCache | None = None,
    ) -> Tensor:
        """Logits of some rows.

        Args:
            tokens: (batch, n), those of the rows of this forward.
            keep: indices (m,) into the rows whose logits are wanted, or how many of the last rows.
            rows: positions (batch, n) of the rows; None for 0 to n - 1.
            visible: bool (batch, length), False at slots that are padding; None if none is.
            cache: holds the other rows.

        Returns:
            Logits (batch, m, vocabulary).
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)[None] if rows is None else rows
        options: dict[str, Any] = {"logits_to_keep": keep} if self._keeps else {}
        logits: Tensor = self.model(
            input_ids=tokens,
            position_ids=places,
            attention_mask=visible,
            past_key_values=cache,
            use_cache=cache is not None,
            is_causal=False,
            **options,
        ).logits
        if self._keeps:
            return logits
        return logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]

    def check_rows_can_be_cached(self) -> None:
        """Refuse, before any work, a model whose rows cannot be computed one without the others.

        Raises:
            ValueError: it has layers with a sliding window, or without attention.
        """
        config = self.model.config.get_text_config(decoder=True)
        own = getattr(config, "layer_types", None)
        window = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        kinds = set(own or [window]) - {"full_attention"}
        if kinds or getattr(self.model, "_is_stateful", False):
            kinds = kinds or {"recurrent"}
            raise ValueError(
                f"{type(self.model).__name__} has layers of kind {', '.join(sorted(kinds))}: rows can only be reused "
                "where every layer attends to all positions. Call the pipeline without this method"
            )

    @torch.no_grad()
    def check_bidirectional(self) -> None:
        """Refuse, before any work, a model that stays causal when asked not to be.

        Raises:
            ValueError: what comes later does not change what comes before.
        """
        device = self.model.get_input_embeddings().weight.device
        probe = torch.tensor([[1, 2], [1, 3]], device=device)
        first = self(probe, torch.tensor([0], device=device))
        if torch.equal(first[0], first[1]):
            raise ValueError(
                f"{type(self.model).__name__} stays causal when called with is_causal=False, so it cannot fill in "
                "masks: use a model whose attention follows that argument, as Llama's, Qwen2's and Mistral's do"
            )
