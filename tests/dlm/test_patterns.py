"""Does every query block keep the key blocks that the paper, or its released code, would keep, and never padding?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffaccel.dlm.patterns import (
    FORMS,
    Schedule,
    block_lists,
    build_pattern,
    density,
    first_generation_block,
    fit,
    schedule,
    token_mask,
)

CASES = json.loads((Path(__file__).parents[1] / "oracles" / "diffusion_lm.json").read_text())["cases"]


def cases(kind: str) -> Any:
    found = [case for case in CASES if case["kind"] == kind]
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


forms = pytest.mark.parametrize("form", FORMS)


@forms
@cases("sparsed_schedule")
def test_schedules_of_the_oracles(case: dict[str, Any], form: str) -> None:
    wanted = case[form]
    found = schedule(case["setting"]["steps"], case["setting"]["skip"], form)
    assert found == Schedule(wanted["full_steps"], wanted["pattern_step"], wanted["sparse_steps"])


def test_products_that_are_whole_numbers_are_not_moved_by_rounding() -> None:
    assert 0.29 * 100 < 29  # in floats, which is the trap
    assert 0.28 * 25 > 7
    assert schedule(100, 0.29).full_steps == 29
    scores = torch.rand(1, 1, 50, 50)  # as queries against unit vectors; 25 prompt blocks of 1
    pattern = build_pattern(scores, torch.eye(50)[None, None], 1.0, [25], [25], 1, 0.28)
    assert pattern[..., :25].sum(-1).unique().tolist() == [7]


def oracle_heads(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Queries and keys (1, 1, length, length) whose products are the logits of the case."""
    length, a = case["setting"]["length"], case["setting"]["logits_a"]
    logits = [[((a * i * i + 7 * j + 3 * i * j) % 11 - 5) / 2 for j in range(length)] for i in range(length)]
    return torch.tensor(logits)[None, None], torch.eye(length)[None, None]


@forms
@cases("sparsed_pattern")
def test_patterns_of_the_oracles(case: dict[str, Any], form: str) -> None:
    setting, wanted = case["setting"], case[form]
    sizes = setting["prompt"], setting["generated"], setting["block_size"]
    assert first_generation_block(*sizes) == case["first_generation_block"]
    query, key = oracle_heads(case)
    pattern = build_pattern(query, key, 1.0, [sizes[0]], [sizes[1]], sizes[2], setting["rho"], form)
    assert [row.nonzero().flatten().tolist() for row in pattern[0, 0]] == wanted["kept"]
    assert density(pattern) == pytest.approx(wanted["density"], abs=1e-6)


@cases("block_lists")
def test_block_lists_of_the_oracles(case: dict[str, Any]) -> None:
    counts, indices = block_lists(torch.tensor(case["mask"], dtype=torch.bool))
    assert (counts.tolist(), indices.tolist()) == (case["counts"], case["indices"])
    assert counts.dtype == indices.dtype == torch.int32  # what FlexAttention takes


def slow_pattern(
    query: Tensor, key: Tensor, scale: float, prompt: int, generated: int, block_size: int, rho: float, form: str
) -> list[list[list[int]]]:
    """One sequence without padding, by the definition: kept key blocks by head and query block, in double precision."""
    total, groups = prompt + generated, query.shape[0] // key.shape[0]
    spans = [range(s, min(s + block_size, total)) for s in range(0, total, block_size)]
    starts = [j for j, span in enumerate(spans) if span[0] >= prompt] or [len(spans) - 1]
    sides = list(range(starts[0])), list(range(starts[0], len(spans)))

    def best(means: list[float], blocks: list[int], count: int) -> list[int]:
        return sorted(blocks, key=lambda j: (-means[j], j))[: min(count, len(blocks))]

    kept = []
    for head in range(query.shape[0]):
        logits = (query[head].double() @ key[head // groups].double().T * scale)[:total, :total]
        everything = logits.softmax(-1)
        late = logits.clone()
        late[:, : spans[starts[0]][0]] = -torch.inf
        late = late.softmax(-1)
        rows = []
        for span in spans:
            if form == "paper":
                means = [float(everything[span][:, k].mean()) for k in spans]
                row = [j for side in sides for j in best(means, side, max(1, math.ceil(round(rho * len(side), 9))))]
            else:
                means = [float(everything[span][:, k].sum()) for k in spans]
                row = [j for j in best(means, [*sides[0], *sides[1]], int(len(spans) * rho) + 1) if j in sides[0]]
                row += best([float(late[span][:, k].sum()) for k in spans], sides[1], int(len(sides[1]) * rho) + 1)
            rows.append(sorted(row))
        kept.append(rows)
    return kept


lengths = st.tuples(st.integers(0, 20), st.integers(1, 20))


@given(
    st.lists(lengths, min_size=1, max_size=3),
    st.integers(0, 5),
    st.integers(1, 7),
    st.floats(0.05, 1),
    st.sampled_from(FORMS),
    st.sampled_from([(4, 4), (4, 2), (2, 1)]),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=80)
def test_patterns_of_a_padded_batch_are_the_definition_row_by_row(
    rows: list[tuple[int, int]], more: int, size: int, rho: float, form: str, heads: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    length = max(p + g for p, g in rows) + more
    query = torch.randn(len(rows), heads[0], length, 8, generator=generator)
    key = torch.randn(len(rows), heads[1], length, 8, generator=generator)
    for b, (p, g) in enumerate(rows):
        query[b, :, p + g :] = torch.nan  # whatever padding holds, nothing of it may be seen
        key[b, :, p + g :] = torch.nan
    pattern = build_pattern(query, key, 0.7, [p for p, _ in rows], [g for _, g in rows], size, rho, form)
    n = -(-length // size)
    assert pattern.shape == (len(rows), heads[0], n, n)
    for b, (p, g) in enumerate(rows):
        slow = slow_pattern(query[b, :, : p + g], key[b, :, : p + g], 0.7, p, g, size, rho, form)
        real = -(-(p + g) // size)
        for head, wanted in enumerate(slow):
            found = [row.nonzero().flatten().tolist() for row in pattern[b, head]]
            assert found == wanted + [[0]] * (n - real)


def test_long_sequences_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(2, 4, 50, 8), torch.randn(2, 2, 50, 8)
    arguments = (query, key, 0.3, [20, 11], [30, 30], 4, 0.4)
    whole = build_pattern(*arguments)
    monkeypatch.setattr("diffaccel.dlm.patterns._SCORES", {"cpu": 1})
    assert torch.equal(build_pattern(*arguments), whole)


def test_ties_go_to_the_first_block() -> None:
    flat = torch.zeros(1, 1, 16, 4)
    pattern = build_pattern(flat, flat, 1.0, [8], [8], 2, 0.5)
    assert pattern[0, 0].nonzero()[:, 1].reshape(8, 4).unique(dim=0).tolist() == [[0, 1, 4, 5]]


def test_a_mask_by_position_repeats_the_pattern() -> None:
    pattern = torch.tensor([[True, False], [True, True]])[None, None]
    wanted = [[1, 1, 1, 0, 0]] * 3 + [[1, 1, 1, 1, 1]] * 2
    assert token_mask(pattern, 3, 5)[0, 0].int().tolist() == wanted


def test_a_pattern_of_another_length_only_gains_or_loses_padding() -> None:
    pattern = torch.tensor([[True, False], [True, True]])
    wider = fit(pattern, 4)
    assert wider.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert torch.equal(fit(wider, 2), pattern)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": 0.0}, "rho"),
        ({"rho": 1.5}, "rho"),
        ({"form": "newest"}, "unknown form 'newest': choose one of paper, released"),
        ({"block_size": 0}, "block_size"),
        ({"prompt": [4, -1]}, "prompt"),
        ({"generated": [4, 0]}, "generated"),
        ({"generated": [4, 9]}, "cannot hold"),
        ({"prompt": [4], "generated": [4]}, "cannot hold"),
        ({"key": torch.zeros(2, 3, 12, 8)}, "do not fit"),
        ({"key": torch.zeros(2, 4, 13, 8)}, "do not fit"),
    ],
)
def test_what_cannot_be_a_pattern_is_refused(change: dict[str, Any], message: str) -> None:
    good = {"query": torch.zeros(2, 4, 12, 8), "key": torch.zeros(2, 4, 12, 8), "scale": 1.0}
    good |= {"prompt": [4, 4], "generated": [4, 8], "block_size": 4, "rho": 0.5}
    build_pattern(**good)
    with pytest.raises(ValueError, match=message):
        build_pattern(**{**good, **change})


@pytest.mark.parametrize(("steps", "skip"), [(0, 0.2), (8, -0.1), (8, 1.1), (8, math.nan)])
def test_what_cannot_be_a_schedule_is_refused(steps: int, skip: float) -> None:
    with pytest.raises(ValueError, match=r"steps must be|skip is"):
        schedule(steps, skip)
