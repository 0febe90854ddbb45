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

from diffaccel.dlm.sequence import Ask, Course, Decoder, State

if TYPE_CHECKING:
    from diffaccel.dlm.scores import Prediction


@dataclass
class Speculation:
    """What became of the drafts of one sequence.

    Attributes:
        accepted: nodes that counted, for each iteration; the first of each always does.
        drafted: nodes that were tried, for each iteration.
        margin: the least by which a decision on the way was made: the gap between a chosen token's logit and the next,
            or between the confidences of the last position chosen and the first not chosen. Below the rounding of the
            hardware, batches of another size could decide otherwise.
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
    state, lanes = course.start, _Lanes()
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
            log.margin = min(log.margin, margin(before, seen, after))
        lanes.settle(asks, last)
        state = nodes[last]
        if course.done(state):
            return state.tokens
        prediction, asked = checks[last], asks[last]


def drafted(course: Course, state: State, prediction: Prediction, asked: Ask, draft: int) -> list[State]:
    """The states that the next steps would lead to if the prediction held; the first is certain.

    A draft ends with the block, and at a step that computes all rows: what follows would be reused from there.
    """
    nodes = [course.successor(state, prediction, asked)]
    while len(nodes) <= draft:
        node = nodes[-1]
        if course.done(node) or node.block != state.block:
            break
        ask = course.ask(node)
        if course.policy is not None and ask.is_whole:
            break
        nodes.append(course.successor(node, prediction.at(course.masked(node)), ask))
    return nodes


def same(one: State, other: State) -> bool:
    """Whether two states are the same text at the same step."""
    places = (one.block, one.index) == (other.block, other.index)
    return places and np.array_equal(one.tokens, other.tokens) and np.array_equal(one.known, other.known)


def margin(before: State, prediction: Prediction, after: State) -> float:
    """By how much a step's decision was made; see `Speculation`."""
    chosen = after.known[prediction.positions] & ~before.known[prediction.positions]
    least = float(prediction.gap[chosen].min()) if chosen.any() else float("inf")
    if not chosen.any() or chosen.all():
        return least
    return min(least, float(prediction.confidence[chosen].min() - prediction.confidence[~chosen].max()))


class _Lanes:
    """Which lanes hold the stored rows as they are now. A lane that does not takes them over from one that does."""

    def __init__(self) -> None:
        self.fresh = {0}

    def take(self, asked: Ask, lane: int) -> Ask:
        """The forward in this lane."""
        source = None if lane in self.fresh or asked.is_whole else min(self.fresh)
        self.fresh.add(lane)
        return dataclasses.replace(asked, lane=lane, source=source)

    def settle(self, asks: list[Ask], last: int) -> None:
        """After a check up to the node `last`: a step that computed all rows is what is stored now, or is forgotten."""
        for lane, asked in enumerate(asks):
            if asked.is_whole:
                self.fresh = {lane} if lane == last else self.fresh - {lane}
