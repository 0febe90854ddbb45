"""Which rows of a dataset a training sees in which round, from the seed alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from diffaccel.morse.recipe import DotRecipe


class Rows(Sampler[list[int]]):
    """Rows of a dataset, a batch a round: every row once, in random order, then again in another.

    Args:
        count: rows.
        recipe: batch and seed.
        round: to begin with.
        process: of several, which each see rows of their own.
    """

    def __init__(self, count: int, recipe: DotRecipe, round: int, process: int = 0) -> None:
        self.count, self.recipe, self.round, self.process = count, recipe, round, process

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, list[int]()
        place = self.round * self.recipe.batch
        while True:
            rows = []
            for i in range(place, place + self.recipe.batch):
                if i // self.count != epoch:
                    epoch = i // self.count
                    generator = torch.Generator().manual_seed(mixed_seed(self.recipe.seed, epoch, self.process, 1))
                    order = torch.randperm(self.count, generator=generator).tolist()
                rows.append(order[i % self.count])
            place += self.recipe.batch
            yield rows


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers, up to four."""
    factors = (1_000_003, 7919, 104_729, 15_485_863)
    return sum(part * factor for part, factor in zip(parts, factors, strict=False)) % 2**62
