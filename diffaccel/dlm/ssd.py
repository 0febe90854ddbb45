"""Self-speculative decoding (SSD, arXiv:2510.04147): the model drafts several steps and checks them in one forward.

One forward predicts all masked positions, so the decisions of the next steps can be guessed from it. The texts they
would lead to, the nodes, go through the network as one batch. A node counts if its parent's own prediction leads to it;
the rest is thrown away, so the result is that of step-wise decoding whatever was drafted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from diffaccel.dlm.sequence import Course
from diffaccel.dlm.shift import Flags
from diffaccel.dlm.state import Ask, Decoder, State

if TYPE_CHECKING:
    from diffaccel.dlm.scores import Prediction


@dataclass
class Speculation:
    """What became of the drafts of one sequence.

    Attributes:
        accepted: nodes that counted, for each iteration; the first of each always does.
        drafted: nodes that were tried, for each iteration.
        margin: the least by which a decision on the way was made: the gap between a chosen token's logit and the next,
            or what is missing for other positions to be chosen, see `diffaccel.dlm.rule.Rule.margin`. Below the
            rounding of the hardware, batches of another size could decide otherwise.
    """

    accepted: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    margin: float = float("inf")


def speculative(course: Course, draft: int, log: Speculation, one_by_one: bool = False) -> Decoder:
    """Decode as `stepwise` does, to the same text, in fewer forwards.

    Args:
        course: of the sequence; its sampler must be deterministic, its policy steady.
        draft: N, nodes beyond the one that is certain.
        log: is filled in.
        one_by_one: check node after node instead of all in one batch, for comparisons.
    """
    state, lanes = course.start, _Lanes(course.length)
    if course.done(state):
        return state.tokens
    asked = course.ask(state)
    (prediction,) = yield [asked]
    while True:
        nodes = drafted(course, state, prediction, asked, draft)
        # Draft and lane are one: node j is computed in lane j.
        asks = [lanes.take(course.ask(node), lane) for lane, node in enumerate(nodes) if not course.done(node)]
        checks: list[Prediction] = []
        for batch in [[ask] for ask in asks] if one_by_one else [asks] if asks else []:
            checks += yield batch
        # j = 1; while g(node_j, logits_j) = D_{j+1} in positions and tokens: j = j + 1
        last = 0
        while last + 1 < len(nodes) and same(course.successor(nodes[last], checks[last], asks[last]), nodes[last + 1]):
            last += 1
        log.accepted.append(last + 1)
        log.drafted.append(len(nodes))
        for before, seen, after in zip([state, *nodes], [prediction, *checks], nodes[: last + 1], strict=False):
            log.margin = min(log.margin, margin(course, before, seen, after))
        state = nodes[last]
        if course.done(state):
            return state.tokens
        lanes.settle(asks, last)
        prediction, asked = checks[last], asks[last]


def drafted(course: Course, state: State, prediction: Prediction, asked: Ask, draft: int) -> list[State]:
    """The states that the next steps would lead to if the prediction held; the first is certain.

    A draft ends with the block, and before a step that reuses rows which a step of the same draft computes: steps are
    checked side by side, so none sees what another stores.
    """
    nodes = [course.successor(state, prediction, asked)]
    while len(nodes) <= draft:
        node = nodes[-1]
        if course.done(node):
            break
        ask, guess = course.ask(node), prediction.at(course.masked(node))
        if not len(guess.positions):  # the next block, of which nothing is predicted yet
            break
        after = course.successor(node, guess, ask)
        if course.policy is not None and not course.done(after) and (ask.rows & ~course.ask(after).rows).any():
            break
        nodes.append(after)
    return nodes


def same(one: State, other: State) -> bool:
    """Whether two states are the same text at the same step."""
    places = (one.block, one.index) == (other.block, other.index)
    return places and np.array_equal(one.tokens, other.tokens) and np.array_equal(one.known, other.known)


def margin(course: Course, before: State, prediction: Prediction, after: State) -> float:
    """By how much a step's decision was made; see `Speculation`."""
    chosen = after.known[prediction.positions] & ~before.known[prediction.positions]
    least = float(prediction.gap[chosen].min(initial=np.inf))
    if course.order is not None:  # which positions come next is no decision
        return least
    return min(least, course.rule.margin(prediction, int(chosen.sum())))


class _Lanes:
    """Which rows of each lane are not what step-wise decoding would have stored by now.

    One lane has none. A lane whose differing rows would be reused takes over what that one holds.
    """

    def __init__(self, length: int) -> None:
        self._length, self._right = length, 0
        self._differing = {0: np.zeros(length, dtype=bool)}

    def take(self, asked: Ask, lane: int) -> Ask:
        """The forward in this lane."""
        reused = ~asked.rows & (np.arange(self._length) < asked.visible)
        source = None
        if (self._of(lane) & reused).any():
            source, self._differing[lane] = self._right, np.zeros(self._length, dtype=bool)
        return dataclasses.replace(asked, lane=lane, source=source)

    def settle(self, asks: list[Ask], last: int) -> None:
        """After a check that went through up to the forward `last`.

        Raises:
            RuntimeError: that forward did not compute all rows that those before it did: the policy is not steady.
        """
        accepted = np.logical_or.reduce([asked.rows for asked in asks[: last + 1]])
        if (accepted & ~asks[last].rows).any():
            raise RuntimeError(
                f"step {asks[last].step} reuses rows that a step of the same draft computed: self-speculative decoding "
                "needs a policy whose stored rows only change at full steps"
            )
        for lane in self._differing.keys() | set(range(len(asks))):
            written = asks[lane].rows if lane < len(asks) else False
            self._differing[lane] = self._of(lane) | accepted | written
        self._right, self._differing[last] = last, np.zeros(self._length, dtype=bool)

    def _of(self, lane: int) -> Flags:
        return self._differing.get(lane, np.ones(self._length, dtype=bool))
