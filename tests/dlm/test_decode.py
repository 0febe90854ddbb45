"""Do steps decode as many positions, and the same ones, as the loops and rules they are named after?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EntropyBoundScheduler
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffaccel.dlm.decode import (
    blocks,
    by_entropy_bound,
    by_factor,
    by_threshold,
    most_confident,
    steps_of_blocks,
    transfer_counts,
)

CASES = json.loads((Path(__file__).parents[1] / "oracles" / "diffusion_lm.json").read_text())["cases"]
PARALLEL = {"threshold": by_threshold, "factor": by_factor, "entropy_bound": by_entropy_bound}
NOT_THIS = -math.inf

# Few distinct values, so that ties are common.
probabilities = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.6, 0.75, 0.8, 0.9, 0.95, 1.0]), min_size=1, max_size=12)
some_forbidden = st.lists(st.sampled_from([NOT_THIS, 0.1, 0.5, 0.9, 1.0]), min_size=1, max_size=12).filter(
    lambda scores: max(scores) > NOT_THIS
)


def cases(kind: str) -> Any:
    found = [case for case in CASES if case["kind"] == kind]
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


def scores(values: list[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


@cases("transfer_counts")
def test_counts_of_the_oracles(case: dict[str, Any]) -> None:
    assert transfer_counts(**case["setting"]) == case["counts"]


@given(masked=st.integers(0, 300), steps=st.integers(1, 300))
def test_equal_shares_with_the_remainder_first(masked: int, steps: int) -> None:
    counts = transfer_counts(masked, steps, "llada")
    assert (len(counts), sum(counts)) == (steps, masked)
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@given(masked=st.integers(0, 600), steps=st.integers(1, 300), eps=st.sampled_from([1e-3, 1e-2, 0.3]))
def test_shares_of_dream_are_those_of_float32_tensors(masked: int, steps: int, eps: float) -> None:
    times = torch.linspace(1, eps, steps + 1)
    left, expected = torch.tensor(float(masked)), []
    for step in range(steps):
        keep = times[step + 1] / times[step]
        expected.append(int(left) if step == steps - 1 else int(left * (1 - keep)))
        left = left - expected[-1]
    assert transfer_counts(masked, steps, "dream", eps) == expected
    assert sum(expected) == masked


@cases("parallel_rule")
def test_parallel_rules_of_the_oracles(case: dict[str, Any]) -> None:
    given_scores = scores(case["confidence"] if "confidence" in case else case["entropies"])
    assert PARALLEL[case["rule"]](given_scores, case["value"]).tolist() == case["accepted"]


@given(values=some_forbidden, data=st.data())
def test_the_most_confident_come_best_first_and_ties_from_the_left(values: list[float], data: st.DataObject) -> None:
    allowed = sum(value > NOT_THIS for value in values)
    count = data.draw(st.integers(0, allowed))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert most_confident(scores(values), count).tolist() == expected


@given(values=probabilities, threshold=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_threshold_takes_all_that_reach_it_or_else_the_first_best(values: list[float], threshold: float) -> None:
    reached = [i for i, value in enumerate(values) if value >= threshold]
    assert by_threshold(scores(values), threshold).tolist() == (reached or [values.index(max(values))])


@given(values=probabilities, factor=st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0, 2.0, 9.0]))
def test_a_factor_asks_less_of_each_the_fewer_there_are(values: list[float], factor: float) -> None:
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    passed = 1
    while passed < len(order) and values[order[passed]] >= 1 - factor / (passed + 2):
        passed += 1
    assert by_factor(scores(values), factor).tolist() == sorted(order[:passed])


@given(
    values=st.lists(st.integers(0, 12).map(lambda eighths: eighths / 8), min_size=1, max_size=12),
    bound=st.integers(0, 24).map(lambda eighths: eighths / 8),
)
def test_entropies_before_a_position_stay_within_the_bound(values: list[float], bound: float) -> None:
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    expected = [i for rank, i in enumerate(order) if sum(values[j] for j in order[:rank]) <= bound]
    assert by_entropy_bound(scores(values), bound).tolist() == sorted(expected)


@pytest.mark.parametrize("bound", [0.0, 0.1, 1.0, 5.0, 100.0])
def test_the_entropy_bound_accepts_what_diffusers_accepts(bound: float) -> None:
    scheduler = EntropyBoundScheduler(t_max=1.0, t_min=1.0)
    scheduler.set_timesteps(4)
    logits = 4 * torch.randn(1, 16, 11, generator=torch.Generator().manual_seed(5))
    sample = torch.zeros(1, 16, dtype=torch.long)
    accepted = scheduler.step(logits, 0, sample, entropy_bound=bound).accepted_index[0]
    entropy = torch.distributions.Categorical(logits=logits[0].double()).entropy().numpy()
    assert by_entropy_bound(entropy, bound).tolist() == accepted.nonzero()[:, 0].tolist()


@given(values=some_forbidden)
def test_what_may_not_be_chosen_never_is(values: list[float]) -> None:
    allowed = [i for i, value in enumerate(values) if value > NOT_THIS]
    confidence = scores(values)
    entropy = np.where(confidence > NOT_THIS, 1 - confidence, math.inf)
    # Rules so generous that they take all they may.
    assert by_threshold(confidence, -1e9).tolist() == allowed
    assert by_factor(confidence, 1e9).tolist() == allowed
    assert by_entropy_bound(entropy, 1e9).tolist() == allowed
    assert sorted(most_confident(confidence, len(allowed)).tolist()) == allowed


def test_a_step_may_decode_nothing() -> None:
    assert most_confident(scores([0.3, NOT_THIS]), 0).tolist() == []
    assert most_confident(scores([NOT_THIS]), 0).tolist() == []


@given(prompt=st.integers(0, 40), count=st.integers(1, 6), block_length=st.integers(1, 16))
def test_blocks_from_the_end_of_the_prompt(prompt: int, count: int, block_length: int) -> None:
    found = blocks(prompt, count * block_length, block_length)
    assert [position for block in found for position in block] == list(range(prompt, prompt + count * block_length))
    assert [len(block) for block in found] == [block_length] * count


@given(prompt=st.integers(0, 40), generated=st.integers(1, 60), block_length=st.integers(1, 16))
def test_blocks_of_the_grid_from_zero(prompt: int, generated: int, block_length: int) -> None:
    found = blocks(prompt, generated, block_length, grid="zero")
    whole = [range(start, start + block_length) for start in range(0, prompt + generated, block_length)]
    expected = [
        range(block.start, min(block.stop, prompt + generated))
        for block in whole
        if any(position >= prompt for position in block)
    ]
    assert found == expected


def test_the_first_block_of_the_grid_from_zero_may_straddle_and_the_last_may_be_short() -> None:
    assert blocks(5, 6, 4, grid="zero") == [range(4, 8), range(8, 11)]
    assert blocks(8, 4, 4, grid="zero") == [range(8, 12)]


def test_steps_are_shared_evenly() -> None:
    assert steps_of_blocks(128, 4) == 32
    assert steps_of_blocks(4, 4) == 1


NAN = scores([0.1, math.nan])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: transfer_counts(8, 4, "linear"), "unknown rule 'linear': choose one of llada, dream"),
        (lambda: transfer_counts(-1, 4, "llada"), "masked must be a whole number of at least 0, got -1"),
        (lambda: transfer_counts(8, 0, "dream"), "steps must be a whole number of at least 1"),
        (lambda: transfer_counts(8, True, "dream"), "steps must be a whole number"),
        (lambda: transfer_counts(8, 4, "dream", eps=0.0), "eps must lie between 0 and 1"),
        (lambda: most_confident(scores([]), 0), "at least one position"),
        (lambda: most_confident(np.zeros((2, 2)), 1), r"shape \(2, 2\)"),
        (lambda: most_confident(scores([1.0, NOT_THIS]), 2), "2 positions are asked for, but only 1 may"),
        (lambda: most_confident(scores([1.0]), -1), "count must be a whole number of at least 0"),
        (lambda: most_confident(NAN, 1), "confidence of position 1 is not a number.*bfloat16"),
        (lambda: by_threshold(NAN, 0.5), "not a number"),
        (lambda: by_factor(NAN, 0.5), "not a number"),
        (lambda: by_entropy_bound(NAN, 0.5), "entropy of position 1 is not a number"),
        (lambda: by_threshold(scores([NOT_THIS]), 0.5), "no position may be chosen"),
        (lambda: by_factor(scores([NOT_THIS]), 0.5), "no position may be chosen"),
        (lambda: by_entropy_bound(scores([math.inf]), 0.5), "no position may be chosen"),
        (lambda: by_threshold(scores([0.5]), math.nan), "threshold must be a finite number"),
        (lambda: by_factor(scores([0.5]), -0.1), "factor must be a number of at least 0"),
        (lambda: by_factor(scores([0.5, 3.0]), 0.1), "needs probabilities, got confidences from 0.5 to 3"),
        (lambda: by_factor(scores([0.5, -3.0]), 0.1), "needs probabilities"),
        (lambda: by_entropy_bound(scores([0.5]), -1.0), "entropy bound must be a number of at least 0"),
        (lambda: by_entropy_bound(scores([-0.5]), 1.0), "entropies are at least 0"),
        (lambda: blocks(-1, 4, 4), "prompt must be"),
        (lambda: blocks(0, 0, 4), "generated must be"),
        (lambda: blocks(0, 4, 0), "block_length must be"),
        (lambda: blocks(0, 4, 4, grid="end"), "unknown grid 'end': choose one of prompt, zero"),
        (lambda: blocks(2, 10, 4), "blocks of 4: generate 8 or 12 positions"),
        (lambda: blocks(2, 3, 4), "generate 4 positions"),
        (lambda: steps_of_blocks(10, 4), "use 8 or 12 steps"),
        (lambda: steps_of_blocks(3, 4), "use 4 steps"),
        (lambda: steps_of_blocks(4, 0), "blocks must be"),
    ],
)
def test_what_cannot_be(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
