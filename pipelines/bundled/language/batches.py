"""Batches to train on: problems, problems after a stretch of Python source, and Python source alone."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diffaccel.pipelines.bundled.language import python_source
from diffaccel.pipelines.bundled.language.model import LONGEST
from diffaccel.pipelines.bundled.language.problems import ANSWER, KINDS, Problem, Split

TOKENS = 2304
"""Tokens of a batch, about."""
SHORT = ("totals", "totals", "chain", "sorting")
"""Kinds of the short problems, as often as they are drawn."""
LATE = ("totals", "chain", "sorting", "sorting")
"""The same in the last third of the training: sorting takes longest to learn."""
SHARES = (0.78, 0.10, 0.12)
"""Shares of batches of: short problems, short problems after a text, source alone."""


class Batches:
    """Draws batches of tokens [B, L] with the positions [B] where their answers begin.

    Args:
        tokenizer: the tokenizer.
        split: of the problems and of the source.
        seed: of all that is drawn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, split: Split = "train", seed: int = 0) -> None:
        self.tokenizer, self.split, self.random = tokenizer, split, Random(seed)
        backend = tokenizer.backend_tokenizer
        self.source = torch.tensor(backend.encode(python_source.text(split)).ids)
        self.progress = 0.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of short problems at this time of the training."""
        return SHORT if self.progress < 2 / 3 else LATE

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next batch; its kind decides its size."""
        (make,) = self.random.choices((self.short, self.after, self.passages), SHARES)
        return make()

    def short(self) -> tuple[Tensor, Tensor]:
        """Problems of one kind."""
        make = KINDS[self.random.choice(self.kinds)]
        rows = [self.encoded(self.taken(make))]
        rows += [self.encoded(self.taken(make)) for _ in range(TOKENS // len(rows[0]) - 1)]
        return self.stacked(rows)

    def after(self) -> tuple[Tensor, Tensor]:
        """Problems after a stretch of source; the longest come late in the training."""
        longest = 256 if self.progress < 0.4 else 1024 if self.progress < 0.7 else LONGEST
        length = self.random.choice([n for n in (128, 256, 512, 1024, 2048) if n <= longest])
        rows = []
        for _ in range(max(1, TOKENS // length)):
            row = self.encoded(self.taken(KINDS[self.random.choice(self.kinds)]))
            rows.append(torch.cat([self.passage(length - len(row)), row]))
        return self.stacked(rows)

    def passages(self, length: int = 256) -> tuple[Tensor, Tensor]:
        """Source alone; half the rows begin with a stretch that is given."""
        count = TOKENS // length
        begins = [self.random.choice([0, self.random.randrange(length // 2)]) for _ in range(count)]
        return torch.stack([self.passage(length) for _ in range(count)]), torch.tensor(begins)

    def passage(self, length: int) -> Tensor:
        """A random stretch of the source, shape (length,)."""
        start = self.random.randrange(len(self.source) - length)
        return self.source[start : start + length]

    def taken(self, make: Callable[[Random], Problem]) -> Problem:
        """The next problem of the split."""
        while (problem := make(self.random)).split != self.split:
            pass
        return problem

    def encoded(self, problem: Problem) -> Tensor:
        """A problem with its answer, the answer filled up to `ANSWER` tokens with ends of text."""
        prompt, answer = (self.tokenizer(text)["input_ids"] for text in (problem.prompt, problem.answer))
        return torch.tensor(prompt + answer + [self.tokenizer.eos_token_id] * (ANSWER - len(answer)))

    def stacked(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Rows of one length and where their answers begin."""
        tokens = torch.stack(rows)
        return tokens, torch.full((len(tokens),), tokens.shape[1] - ANSWER)
