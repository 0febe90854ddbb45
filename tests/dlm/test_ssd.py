"""Self-speculative decoding writes what step-wise decoding writes, over every cache it allows, in fewer forwards."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diffaccel.dlm.ssd
from diffaccel.dlm.conventions import Conventions
from diffaccel.dlm.policies import Decode, Dual, Full, Policy, Prefill, Prefix, PromptDecode
from diffaccel.dlm.rule import Rule
from diffaccel.dlm.scores import Prediction, Sampler
from diffaccel.dlm.sequence import Course, stepwise
from diffaccel.dlm.ssd import Speculation, margin, speculative
from diffaccel.dlm.state import State
from diffaccel.dlm.steady import STEADY, Finished, Interval
from tests.dlm.toys import Deep, Run, left_to_right, play

CASES = json.loads((Path(__file__).parents[1] / "oracles" / "diffusion_lm.json").read_text())["cases"]
MASK = 7


def _oracle(case: dict[str, Any]) -> Course:
    start = np.array(case["start"])
    made = Course(start[:1], len(start) - 1, len(start) - 1, None, Conventions(-1), Sampler(), Rule())
    made.start = State(start, start >= 0, np.zeros(len(start), dtype=bool), counts=(1,) * 8)
    return made


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case["kind"] == "ssd" and case["draft_length"] is not None],
    ids=lambda c: c["id"],
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_oracles(case: dict[str, Any], one_by_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts: list[list[list[int]]] = []
    drafted = diffaccel.dlm.ssd.drafted

    def watched(course: Course, state: State, *rest: Any) -> list[State]:
        nodes = drafted(course, state, *rest)
        texts = [state.tokens, *(node.tokens for node in nodes)]
        places = [int(np.flatnonzero(one != other)[0]) for one, other in pairwise(texts)]
        drafts.append([[p, int(text[p])] for p, text in zip(places, texts[1:], strict=True)])
        return nodes

    monkeypatch.setattr(diffaccel.dlm.ssd, "drafted", watched)
    log = Speculation()
    run = play(speculative(_oracle(case), case["draft_length"], log, one_by_one), left_to_right)
    assert run.text.tolist() == case["final"]
    assert drafts == [iteration["draft"] for iteration in case["iterations"]]
    assert log.accepted == [iteration["accepted"] for iteration in case["iterations"]]
    assert log.drafted == [len(iteration["draft"]) for iteration in case["iterations"]]
    assert sum(map(len, run.calls)) == case["rows"]
    assert len(run.calls) == (case["rows"] if one_by_one else case["forward_calls"])


RULES = (
    Rule(),
    Rule("dream"),
    Rule(threshold=0.7),
    Rule(factor=0.8),
    Rule(entropy_bound=0.6),
    Rule(threshold=0.9, quota=True),
)
POLICIES: tuple[Policy | None, ...] = (
    None,
    Full(),
    Prefill(),
    Prefix(),
    Dual(),
    Interval(1),
    Interval(2),
    Interval(3),
    Interval(5),
)


def _both(
    seed: int,
    policy: Policy | None,
    rule: Rule,
    draft: int,
    prompt: int = 5,
    generated: int = 12,
    steps: int = 12,
    block: int | None = None,
    shift: Any = None,
    grid: int | None = None,
    one_by_one: bool = False,
    remasking: Any = "low_confidence",
    period: int = 3,
    **options: Any,
) -> tuple[Run, Run, Speculation]:
    """The run step by step and the speculative one, each on a toy with stored rows."""
    runs, log = [], Speculation()
    conventions = Conventions(MASK, options.pop("end", None), shift is not None, grid)
    for fast in (False, True):
        course = Course(
            np.arange(prompt) % MASK,
            generated,
            steps,
            block,
            conventions,
            Sampler(remasking),
            rule,
            policy,
            shift or "un_right",
            generator=np.random.default_rng(seed),
            **options,
        )
        toy = Deep(prompt + generated, seed, shift is not None, grid, period)
        runs.append(play(speculative(course, draft, log, one_by_one) if fast else stepwise(course), toy))
    return runs[0], runs[1], log


def _check(slow: Run, fast: Run, log: Speculation, one_by_one: bool = False) -> None:
    assert fast.text.tolist() == slow.text.tolist()
    assert sum(log.accepted) == len(slow.calls)  # every step of the slow run is an accepted node
    complete = len(fast.calls) == len(log.accepted)
    if not one_by_one:
        # One call, one more each iteration, but none where the last nodes are complete.
        assert len(fast.calls) == len(log.accepted) + (0 if complete else 1)
        assert len(fast.calls) <= len(slow.calls)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_text_is_that_of_steps_one_by_one(policy: Policy | None, rule: Rule) -> None:
    saved = 0
    for seed in range(2):
        for block, steps, full_above in ((None, 12, 1.0), (None, 5, 0.6), (4, 12, 1.0), (4, 12, 0.6), (6, 4, 1.0)):
            slow, fast, log = _both(
                seed, policy, rule, 2 + seed, block=block, steps=steps, full_above=full_above, end=2
            )
            _check(slow, fast, log)
            saved += len(slow.calls) - len(fast.calls)
    assert saved > 0


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    policy=st.sampled_from(POLICIES),
    rule=st.sampled_from(RULES),
    draft=st.integers(1, 6),
    prompt=st.integers(1, 7),
    blocks=st.integers(1, 4),
    length=st.integers(1, 6),
    each=st.integers(1, 6),
    shift=st.sampled_from([None, "un", "un_right", "right"]),
    remasking=st.sampled_from(["low_confidence", "topk_margin", "random"]),
    one_by_one=st.booleans(),
    period=st.integers(1, 20),
    full_above=st.sampled_from([0.5, 0.8, 1.0]),
)
def test_the_text_is_that_of_steps_one_by_one_whatever_the_settings(
    rule: Rule, blocks: int, length: int, each: int, remasking: str, one_by_one: bool, **settings: Any
) -> None:
    rule = Rule() if remasking == "random" else rule
    shape = {"generated": blocks * length, "block": length, "steps": blocks * min(each, length)}
    slow, fast, log = _both(rule=rule, remasking=remasking, one_by_one=one_by_one, **shape, **settings)
    _check(slow, fast, log, one_by_one)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    policy=st.sampled_from([None, Finished(4)]),
    rule=st.sampled_from(RULES),
    draft=st.integers(1, 6),
    prompt=st.integers(1, 9),
    generated=st.integers(1, 14),
    shift=st.sampled_from([None, "un_right"]),
    one_by_one=st.booleans(),
    period=st.integers(1, 20),
)
def test_with_block_diffusion(one_by_one: bool, generated: int, **settings: Any) -> None:
    slow, fast, log = _both(grid=4, generated=generated, steps=generated, one_by_one=one_by_one, **settings)
    _check(slow, fast, log, one_by_one)


@pytest.mark.parametrize("policy", [Decode(3), Decode(4, "paper"), PromptDecode(3)], ids=str)
def test_a_policy_that_is_not_steady_is_exact_too_but_saves_nothing_between_full_steps(policy: Policy) -> None:
    for seed in range(8):
        for block in (None, 4):
            slow, fast, log = _both(seed, policy, Rule(), 4, block=block, period=1)
            _check(slow, fast, log)
            assert len(fast.calls) > len(slow.calls) / 2


def test_every_steady_policy_is_tried_above() -> None:
    tried = {type(policy) for policy in POLICIES} | {Finished}
    assert tried >= set(STEADY) | {Finished}


def test_a_prediction_that_never_changes_is_accepted_whole() -> None:
    # One context only: what is drafted always holds, so N + 1 steps go into a forward.
    for policy in (None, Dual(), Interval(12)):
        slow, fast, log = _both(0, policy, Rule(), 3, period=1)
        _check(slow, fast, log)
        assert log.accepted == [4, 4, 4]
        assert len(fast.calls) == 4


def test_an_interval_is_refreshed_by_the_step_not_by_the_forward() -> None:
    def refreshed(run: Run) -> set[int]:
        return {ask.step for asks in run.calls for ask in asks if ask.is_whole}

    slow, fast, log = _both(0, Interval(4), Rule(), 3, period=1)
    _check(slow, fast, log)
    assert refreshed(slow) == refreshed(fast) == {0, 4, 8}


def _prediction(confidence: list[float], entropy: list[float] | None = None, gap: float = 9.0) -> Prediction:
    count = len(confidence)
    given = np.array(entropy or [0.5] * count)
    return Prediction(np.arange(count), np.zeros(count, int), np.array(confidence), given, np.full(count, gap))


@pytest.mark.parametrize(
    ("rule", "confidence", "entropy", "count", "wanted"),
    [
        (Rule(), [0.9, 0.5, 0.7], None, 1, 0.2),
        (Rule(), [0.9, 0.5, 0.7], None, 2, 0.2),
        (Rule(), [0.9, 0.5, 0.7], None, 3, np.inf),
        (Rule(threshold=0.6), [0.9, 0.5, 0.68], None, 1, 0.08),  # the third is chosen by that much
        (Rule(threshold=0.8), [0.9, 0.5, 0.79], None, 1, 0.01),  # the third is left out by that much
        (Rule(threshold=0.95), [0.9, 0.5, 0.88], None, 1, 0.02),  # the surest is taken, by a little
        (Rule(factor=0.9), [0.5, 0.1, 0.72], None, 1, 0.02),  # rank 2 needs 1 - .9 / 3 = .7: .5 misses it by .2
        (Rule(entropy_bound=0.5), [0.5] * 3, [0.1, 0.45, 0.3], 1, 0.1),  # sums before: 0, .1, .4
    ],
)
def test_how_narrow_a_choice_of_positions_is(
    rule: Rule, confidence: list[float], entropy: list[float] | None, count: int, wanted: float
) -> None:
    if rule.factor is not None:
        wanted = 0.2  # between .72 and .5 lie .22, to the border of rank 2 lie .2
    assert rule.margin(_prediction(confidence, entropy), count) == pytest.approx(wanted)


def test_the_margin_of_a_step() -> None:
    course = Course(np.array([1]), 3, 3, None, Conventions(MASK), Sampler(), Rule())
    found = _prediction([0.9, 0.5, 0.7], gap=0.3)
    found = dataclasses.replace(found, positions=np.array([1, 2, 3]), gap=np.array([0.3, 0.01, 0.02]))
    assert margin(course, course.start, found, course.successor(course.start, found)) == pytest.approx(0.2)
    near = dataclasses.replace(found, gap=np.array([0.1, 0.01, 0.02]))
    assert margin(course, course.start, near, course.successor(course.start, near)) == pytest.approx(0.1)
    planned = Course(np.array([1]), 3, 3, None, Conventions(MASK), Sampler("random"), Rule())
    after = planned.successor(planned.start, found)
    token = found.gap[np.flatnonzero(after.known[1:])[0]]  # the order is given: only the token is decided
    assert margin(planned, planned.start, found, after) == pytest.approx(token)


def test_the_narrowest_decision_is_logged() -> None:
    course = Course(np.array([1]), 8, 8, None, Conventions(MASK), Sampler(), Rule())
    log, toy = Speculation(), Deep(9, 4)
    states, least, state = [], np.inf, course.start
    play(speculative(course, 3, log), Deep(9, 4))
    while not course.done(state):
        asked = course.ask(state)
        found = toy(asked)
        after = course.successor(state, found, asked)
        least = min(least, margin(course, state, found, after))
        states.append(state)
        state = after
    assert len(states) == 8
    assert log.margin == least < np.inf
