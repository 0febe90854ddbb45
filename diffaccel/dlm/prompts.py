"""Prompts as tokens, tokens as texts, and generators as seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Tokens: TypeAlias = NDArray[np.int64]
Prompt: TypeAlias = str | Sequence[str] | Sequence[Sequence[int]] | Tensor
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None

MASKED = "▒"
"""How a position that is not decoded yet is shown."""


def encoded(
    tokenizer: Any, prompt: Prompt | None, messages: Sequence[Mapping[str, str]] | None, vocabulary: int, mask: int
) -> list[Tokens]:
    """Tokens of each prompt, without padding.

    Args:
        tokenizer: of the model.
        prompt: a text, several, or tokens.
        messages: a conversation instead.
        vocabulary: tokens that the model knows.
        mask: the mask token.

    Raises:
        TypeError: a prompt that is none of these.
        ValueError: both or neither, none in a list, a conversation without a chat template, or tokens that the model
            does not know or that stand for what is to be written.
    """
    if (prompt is None) == (messages is None):
        raise ValueError("give either prompt or messages")
    rows = [_row(tokenizer, one) for one in _listed(prompt)] if messages is None else [_chat(tokenizer, messages)]
    if not rows:
        raise ValueError("there is no prompt in the list")
    prompts = [np.asarray(row, dtype=np.int64).reshape(-1) for row in rows]
    for number, one in enumerate(prompts):
        if (one == mask).any():
            raise ValueError(f"prompt {number} holds the mask token ({mask}): it stands for what is to be written")
        if len(one) and (one.min() < 0 or one.max() >= vocabulary):
            raise ValueError(
                f"prompt {number} holds tokens from {one.min()} to {one.max()}, but the model knows 0 to "
                f"{vocabulary - 1}: is this its tokenizer?"
            )
    return prompts


def decoded(tokenizer: Any, tokens: Tokens, end: int | None, mask: int) -> str:
    """A text up to its end, with `MASKED` where nothing is decoded yet."""
    ends = np.flatnonzero(tokens == end) if end is not None else np.empty(0, dtype=np.intp)
    kept = tokens[: ends[0]] if len(ends) else tokens
    # Masks split the text: a tokenizer may drop its mask token, or join what stands around it.
    pieces = np.split(kept, np.flatnonzero(kept == mask))
    texts = [tokenizer.decode(piece[piece != mask].tolist(), skip_special_tokens=True) for piece in pieces]
    return MASKED.join(texts)


def seeds(generator: Generators, count: int) -> list[int]:
    """One seed for each prompt. A prompt's depends on its place in the list only, not on how many follow.

    Raises:
        ValueError: not as many generators as prompts.
    """
    if isinstance(generator, Sequence):
        if len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} prompts: give one for each, or a single one")
        return [_seed(one) for one in generator]
    return [_seed(generator) for _ in range(count)]


def _seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def _listed(prompt: Any) -> list[Any]:
    if isinstance(prompt, Tensor | np.ndarray):
        prompt = prompt.tolist()
    alone = isinstance(prompt, str) or (isinstance(prompt, Sequence) and any(isinstance(one, int) for one in prompt))
    return [prompt] if alone else list(prompt)


def _row(tokenizer: Any, one: Any) -> list[int]:
    if isinstance(one, str):
        found: list[int] = tokenizer(one)["input_ids"]
        return found
    row = one.tolist() if isinstance(one, Tensor | np.ndarray) else one
    if not isinstance(row, Sequence) or not all(isinstance(token, int) for token in row):
        raise TypeError(f"a prompt is a text or a list of tokens (whole numbers), got {one!r}")
    return list(row)


def _chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("messages need a tokenizer with a chat template, and this one has none: give a prompt")
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    row: list[int] = found["input_ids"]
    return row
