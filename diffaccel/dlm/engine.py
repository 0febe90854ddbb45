"""Runs the decoders of a batch: all forwards that are wanted at a time go through the network together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffaccel.dlm.adapters import Denoiser
from diffaccel.dlm.scores import Prediction, Sampler, guided
from diffaccel.dlm.slots import SlotCache
from diffaccel.dlm.sparse_attention import SparseRun
from diffaccel.dlm.state import Ask, Decoder


@dataclass
class Counts:
    """What a run took.

    Attributes:
        forwards: calls of the network.
        rows: rows computed, each a position of a sequence in a forward; padding is not counted.
        whole: rows there would have been had every forward computed all.
        first: (L,) rows computed at each forward of the first sequence.
    """

    forwards: int = 0
    rows: int = 0
    whole: int = 0
    first: list[NDArray[np.bool_]] = field(default_factory=list)


class Engine:
    """A batch of sequences on one network.

    Args:
        denoiser: the network.
        sampler: makes tokens of logits.
        prompts: length of each sequence's prompt.
        generated: positions to fill, of each sequence.
        mask: the mask token; never an answer, however likely the network takes it.
        generators: one for each sequence, so that a sequence draws the same whatever its batch; None draws nothing.
        lanes: forwards a sequence may want at a time.
        cache: whether rows are kept.
        scale: of classifier-free guidance; 0 for none.
        sparse: sparse attention, attached to the network already.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        prompts: Sequence[int],
        generated: int,
        mask: int,
        generators: Sequence[torch.Generator | None],
        lanes: int = 1,
        cache: bool = False,
        scale: float = 0.0,
        sparse: SparseRun | None = None,
    ) -> None:
        self.denoiser, self.sampler, self.mask, self.generators = denoiser, sampler, mask, generators
        self.prompts, self.lengths = list(prompts), [prompt + generated for prompt in prompts]
        self.lanes, self.scale, self.sparse = lanes, scale, sparse
        self.branches = 2 if scale else 1
        self.total = self.branches * lanes * len(prompts)
        self.cache = SlotCache(max(self.lengths), self.total) if cache else None
        self.device = denoiser.model.get_input_embeddings().weight.device
        self.counts = Counts()

    def run(self, decoders: Sequence[Decoder]) -> Iterator[list[NDArray[np.int64]]]:
        """Run all to their ends; yields the sequences as they are before each forward, and at last when decoded."""
        texts: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(decoders)
        wanted: dict[int, list[Ask]] = {}
        answers: dict[int, list[Prediction] | None] = dict.fromkeys(range(len(decoders)))
        while answers:
            for number, answer in answers.items():
                try:
                    wanted[number] = next(decoders[number]) if answer is None else decoders[number].send(answer)
                    texts[number] = wanted[number][0].tokens
                except StopIteration as end:
                    texts[number] = end.value
                    wanted.pop(number, None)
            yield list(texts)
            flat = [(number, ask) for number, asks in wanted.items() for ask in asks]
            predictions = iter(self.forward(flat)) if flat else iter(())
            answers = {number: [next(predictions) for _ in asks] for number, asks in wanted.items()}

    def forward(self, asks: Sequence[tuple[int, Ask]]) -> list[Prediction]:
        """One call of the network for the forwards that sequences want, by their numbers."""
        lanes = self._lanes(asks)
        if self.cache is None or all(ask.rows.all() for _, ask in asks):
            logits = self._whole(asks, lanes)
        else:
            logits = self._rows(asks, lanes)
        if self.scale:
            half = len(logits) // 2
            logits = [guided(logits[i], logits[half + i], self.scale) for i in range(half)]
        self._count(asks)
        for one in logits:
            one[:, self.mask] = -torch.inf  # a mask is no answer
        return [
            self.sampler.predict(one, ask.positions, self.generators[number])
            for one, (number, ask) in zip(logits, asks, strict=True)
        ]

    def _whole(self, asks: Sequence[tuple[int, Ask]], lanes: Tensor | None) -> list[Tensor]:
        """Logits (m, vocabulary) of each forward, all rows computed in order."""
        width = max(ask.visible for _, ask in asks) if self.cache is None else self.cache.length
        if self.cache is not None:
            self.cache.place(None, lanes)
        kept = [self.denoiser.rows_of(torch.as_tensor(ask.positions)) for _, ask in asks]
        keep = torch.cat(kept).unique()
        tokens = np.full((len(asks) * self.branches, width), self.mask, dtype=np.int64)
        for row, (number, branch, ask) in enumerate(self._inputs(asks)):
            own = self._tokens(number, branch, ask)[:width]
            tokens[row, : len(own)] = own
        logits = self._call(torch.from_numpy(tokens), keep.to(self.device), None, asks, width, lanes)
        found = [torch.searchsorted(keep, rows).to(self.device) for rows in kept] * self.branches
        return [logits[row, places] for row, places in enumerate(found)]

    def _rows(self, asks: Sequence[tuple[int, Ask]], lanes: Tensor | None) -> list[Tensor]:
        """Logits (m, vocabulary) of each forward, some rows computed: those whose logits are wanted come last."""
        assert self.cache is not None
        orders, places = [], []
        for _, ask in asks:
            kept, place = np.unique(self.denoiser.rows_of(torch.as_tensor(ask.positions)).numpy(), return_inverse=True)
            others = ask.rows.copy()
            others[kept] = False
            orders.append(np.concatenate([np.flatnonzero(others), kept]))
            places.append(place - len(kept))
        width, keep = max(map(len, orders)), max(-int(place.min()) for place in places)
        # Shorter rows are filled up by computing their first row again, which writes what is there already.
        orders = [np.concatenate([np.repeat(order[:1], width - len(order)), order]) for order in orders]
        tokens = [
            self._tokens(number, branch, ask)[orders[row % len(asks)]]
            for row, (number, branch, ask) in enumerate(self._inputs(asks))
        ]
        rows = torch.from_numpy(np.stack(orders * self.branches)).to(self.device)
        self._fork(asks)
        self.cache.place(rows, lanes)
        logits = self._call(torch.from_numpy(np.stack(tokens)), keep, rows, asks, self.cache.length, lanes)
        return [logits[row, torch.from_numpy(place)] for row, place in enumerate(places * self.branches)]

    def _call(
        self,
        tokens: Tensor,
        keep: Tensor | int,
        rows: Tensor | None,
        asks: Sequence[tuple[int, Ask]],
        width: int,
        lanes: Tensor | None,
    ) -> Tensor:
        lengths = torch.tensor([self.lengths[number] for number, _ in asks] * self.branches)
        visible = None
        if bool((lengths < width).any()):
            visible = (torch.arange(width) < lengths[:, None]).to(self.device)
        if self.sparse is not None:
            # A threshold may need more forwards than there are steps.
            self.sparse.begin(min(self.counts.forwards, self.sparse.steps - 1), lanes)
        return self.denoiser(tokens.to(self.device), keep, rows, visible, self.cache)

    def _inputs(self, asks: Sequence[tuple[int, Ask]]) -> list[tuple[int, int, Ask]]:
        return [(number, branch, ask) for branch in range(self.branches) for number, ask in asks]

    def _tokens(self, number: int, branch: int, ask: Ask) -> NDArray[np.int64]:
        """The tokens of a sequence; for guidance, once more without its prompt."""
        if not branch:
            return ask.tokens
        return np.where(np.arange(len(ask.tokens)) < self.prompts[number], self.mask, ask.tokens)

    def _lane(self, number: int, branch: int, lane: int) -> int:
        return (branch * len(self.prompts) + number) * self.lanes + lane

    def _lanes(self, asks: Sequence[tuple[int, Ask]]) -> Tensor | None:
        """The lanes of a forward; None if they are all there are, in order."""
        lanes = [self._lane(number, branch, ask.lane) for number, branch, ask in self._inputs(asks)]
        return None if lanes == list(range(self.total)) else torch.tensor(lanes, device=self.device)

    def _fork(self, asks: Sequence[tuple[int, Ask]]) -> None:
        assert self.cache is not None
        for number, branch, ask in self._inputs(asks):
            if ask.source is not None:
                source = self._lane(number, branch, ask.source)
                self.cache.fork(source, [self._lane(number, branch, ask.lane)])

    def _count(self, asks: Sequence[tuple[int, Ask]]) -> None:
        self.counts.forwards += 1
        for number, ask in asks:
            self.counts.rows += int(ask.rows.sum()) * self.branches
            self.counts.whole += ask.visible * self.branches
            if number == 0 and ask.lane == 0:
                self.counts.first.append(ask.rows)
