"""One sequence while it is decoded: what to ask the network at a state, and which state follows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffaccel.dlm import decode, policies
from diffaccel.dlm.conventions import Conventions
from diffaccel.dlm.policies import Policy, View, check_rows
from diffaccel.dlm.rule import Rule
from diffaccel.dlm.shift import Flags, Shift, predicted, rows_needed
from diffaccel.dlm.state import Ask, Decoder, Places, State

if TYPE_CHECKING:
    from diffaccel.dlm.scores import Prediction, Sampler


class Course:
    """The deterministic part of one sequence's decoding: what to ask at a state, which state follows a prediction.

    Args:
        prompt: (P,) its tokens.
        generated: positions to fill.
        steps: of the whole run.
        block_length: of semi-autoregressive blocks; None for one block (Dream).
        conventions: of the model.
        sampler: of tokens and confidences.
        rule: how many positions a step decodes.
        policy: which stored rows serve a step; None computes all.
        shift: how reuse is shifted where the model predicts position p from row p - 1.
        full_above: a step that would compute more than this share of the rows computes all of them.
        stop_at_end: leave out the blocks after one that ends the text.
        generator: draws the order of positions where that is random.

    Raises:
        ValueError: lengths that do not fit each other, or a rule that does not fit the sampler.
    """

    def __init__(
        self,
        prompt: NDArray[np.int64],
        generated: int,
        steps: int,
        block_length: int | None,
        conventions: Conventions,
        sampler: Sampler,
        rule: Rule,
        policy: Policy | None = None,
        shift: Shift = "un_right",
        full_above: float = 1.0,
        stop_at_end: bool = True,
        generator: np.random.Generator | None = None,
    ) -> None:
        rule.check(sampler)
        self.prompt, self.conventions, self.sampler, self.rule = len(prompt), conventions, sampler, rule
        self.policy, self.full_above, self.stop_at_end = policy, full_above, stop_at_end
        self.shift: Shift | None = shift if conventions.shift else None
        if (grid := conventions.block_causal) is None:
            self.blocks = decode.blocks(self.prompt, generated, generated if block_length is None else block_length)
            self.steps = decode.steps_of_blocks(steps, len(self.blocks))
        else:  # how many blocks there are depends on where the prompt ends, the steps of one do not
            self.blocks = decode.blocks(self.prompt, generated, grid, "zero")
            self.steps = max(1, -(-steps * grid // generated))
        self.length = self.prompt + generated
        tokens = np.full(self.length, conventions.mask_token_id, dtype=np.int64)
        tokens[: self.prompt] = prompt
        known = np.arange(self.length) < self.prompt
        self.start = self._entered(State(tokens, known, np.zeros(self.length, dtype=bool)))
        self.order = _ranks(known, generator) if sampler.is_planned else None

    def done(self, state: State) -> bool:
        """Whether all is decoded."""
        return state.block == len(self.blocks)

    def masked(self, state: State) -> Places:
        """The masked positions of the block."""
        block = self.blocks[state.block]
        return block.start + np.flatnonzero(~state.known[block.start : block.stop])

    def ask(self, state: State) -> Ask:
        """The forward that a state's step needs."""
        block = self.blocks[state.block]
        visible = self.length if self.conventions.block_causal is None else block.stop
        exists = np.arange(self.length) < visible
        view = View(
            state.step,
            state.index,
            block,
            self.prompt,
            state.known,
            state.before,
            self._planned(state),
            state.refreshed,
        )
        rows = exists if self.policy is None else exists & policies.rows_to_compute(self.policy, view, self.shift)
        if rows.sum() > self.full_above * visible:
            rows = exists
        masked, shifted = self.masked(state), self.shift is not None
        if self.shift == "right":
            rows = rows | self._overdue(view, masked, rows)
        check_rows(rows | ~exists, view, self.shift, state.stored)
        positions = masked[predicted(rows, shifted)[masked]]
        return Ask(state.tokens, rows, positions, visible, state.step)

    def _overdue(self, view: View, masked: Places, rows: Flags) -> Flags:
        """Rows that shift "right" reuses although nothing could be decoded, or not what is planned, without them."""
        lacking = masked[~predicted(rows, True)[masked]]
        if view.planned:
            lacking = np.intersect1d(lacking, view.planned)
        elif len(lacking) < len(masked):
            lacking = lacking[:0]
        return rows_needed(_flags(lacking, self.length), True)

    def successor(self, state: State, prediction: Prediction, asked: Ask | None = None) -> State:
        """The state after a step's decision.

        Args:
            state: at the start of the step.
            prediction: of masked positions of its block.
            asked: the forward it comes from, whose rows are stored from now on; None if it has none of its own.
        """
        places = prediction.positions
        if self.order is not None:
            prediction = dataclasses.replace(prediction, confidence=-self.order[places].astype(np.float64))
        chosen = self._chosen(state, prediction)
        tokens, known = state.tokens.copy(), state.known.copy()
        tokens[places[chosen]] = prediction.tokens[chosen]
        known[places[chosen]] = True
        after = dataclasses.replace(
            state, tokens=tokens, known=known, index=state.index + 1, step=state.step + 1, before=state.known
        )
        if asked is not None:
            refreshed = state.known if asked.is_whole else state.refreshed
            after = dataclasses.replace(after, stored=state.stored | asked.rows, refreshed=refreshed)
        return self._advanced(after)

    def written(self, tokens: NDArray[np.int64]) -> int:
        """How many of a sequence's tokens (L,) were decoded: what merely fills up after the end of a text is not."""
        end = self.conventions.eos_token_id
        decoded = tokens != self.conventions.mask_token_id
        decoded[: self.prompt] = False
        for block in self.blocks if self.stop_at_end and end is not None else ():
            if (tokens[max(block.start, self.prompt) : block.stop] == end).any():
                return int(decoded[: block.stop].sum())
        return int(decoded.sum())

    def _advanced(self, state: State) -> State:
        """The state of the next step that decodes something: past finished blocks, and past steps that decode none."""
        if len(self.masked(state)):
            while self._idles(state):
                state = dataclasses.replace(state, index=state.index + 1)
            return state
        block = self.blocks[state.block]
        end = self.conventions.eos_token_id
        if (
            self.stop_at_end
            and end is not None
            and (state.tokens[max(block.start, self.prompt) : block.stop] == end).any()
        ):
            tokens, known = np.where(state.known, state.tokens, end), np.ones_like(state.known)
            return dataclasses.replace(state, tokens=tokens, known=known, block=len(self.blocks))
        after = dataclasses.replace(state, block=state.block + 1, index=0, before=None)
        return after if self.done(after) else self._entered(after)

    def _entered(self, state: State) -> State:
        """A state at the start of its block."""
        counts = decode.transfer_counts(len(self.masked(state)), self.steps, self.rule.counts)
        return self._advanced(dataclasses.replace(state, counts=tuple(counts)))

    def _planned(self, state: State) -> tuple[int, ...]:
        if self.order is None:
            return ()
        masked = self.masked(state)
        return tuple(int(p) for p in masked[np.argsort(self.order[masked])][: self._count(state)])

    def _count(self, state: State) -> int:
        """Positions a step decodes; the last step takes all that are left."""
        left = len(self.masked(state))
        return min(state.counts[state.index], left) if state.index + 1 < len(state.counts) else left

    def _idles(self, state: State) -> bool:
        """Whether a step is known to decode nothing, so that its forward can be left out."""
        return not self.rule.is_parallel and self.sampler.remasking != "origin" and self._count(state) == 0

    def _chosen(self, state: State, prediction: Prediction) -> Places:
        """Indices into a prediction: what the step decodes."""
        last = state.index + 1 >= self.steps
        if self.sampler.remasking != "origin" or last or self.rule.is_parallel:
            return self.rule.choose(prediction, min(self._count(state), len(prediction.positions)))
        # "p_transfer = 1 - s / t; transfer_index = rand < p_transfer" (Dream, alg "origin"), t from 1 to 1e-3
        times = np.linspace(1, 1e-3, self.steps + 1)
        return np.flatnonzero(prediction.confidence < 1 - times[state.index + 1] / times[state.index])


def stepwise(course: Course) -> Decoder:
    """Decode step by step: one forward, then its decision."""
    state = course.start
    while not course.done(state):
        asked = course.ask(state)
        (prediction,) = yield [asked]
        state = course.successor(state, prediction, asked)
    return state.tokens


def _flags(positions: Places, length: int) -> Flags:
    flags = np.zeros(length, dtype=bool)
    flags[positions] = True
    return flags


def _ranks(known: Flags, generator: np.random.Generator | None) -> NDArray[np.intp]:
    """A random order: the rank of every position that is not known."""
    ranks = np.zeros(len(known), dtype=np.intp)
    free = np.flatnonzero(~known)
    ranks[free] = (generator or np.random.default_rng()).permutation(len(free))
    return ranks
