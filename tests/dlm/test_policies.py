"""Do policies compute the rows their papers and codes compute, and never reuse what they must not?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffaccel.dlm.decode import blocks
from diffaccel.dlm.policies import (
    Decode,
    Dual,
    Full,
    Greedy,
    Policy,
    Prefill,
    Prefix,
    PromptDecode,
    View,
    check_rows,
    rows_to_compute,
)
from diffaccel.dlm.row_table import RowTable
from diffaccel.dlm.shift import Shift

CASES = json.loads((Path(__file__).parents[1] / "oracles" / "diffusion_lm.json").read_text())["cases"]

Flags = NDArray[np.bool_]
Order = Sequence[Sequence[Sequence[int]]]  # positions by block and step

PAPER = "paper"
DELAYED: list[Policy] = [Full(), Decode(2), Decode(3), Decode(8), Decode(3, PAPER), Prefill(), PromptDecode(3)]
OTHERS: list[Policy] = [Prefix(), Dual(), Greedy(2, 0), Greedy(3, 2), Greedy(4, 3, "previous")]


def cases(kind: str) -> Any:
    found = [case for case in CASES if case["kind"] == kind]
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


def steps(prompt: int, order: Order, policy: Policy, shift: Shift | None = None) -> Iterator[tuple[View, Flags, Flags]]:
    """Every step of a run that decodes in this order: what is known, the rows, and all rows stored before it."""
    length = prompt + sum(len(step) for block in order for step in block)
    known, stored, overall, start = np.arange(length) < prompt, np.zeros(length, dtype=bool), 0, prompt
    for block in order:
        positions, before = range(start, start + sum(map(len, block))), None
        for index, decoded in enumerate(block):
            planned = tuple(decoded) if policy.needs_order else ()
            view = View(overall, index, positions, prompt, known, before, planned)
            rows = rows_to_compute(policy, view, shift)
            yield view, rows, stored
            stored, before, known, overall = stored | rows, known, known.copy(), overall + 1
            known[list(decoded)] = True
        start = positions.stop


@st.composite
def runs(draw: st.DrawFn, idle: bool = False) -> tuple[int, Order]:
    """A prompt of at least one position and an order, by block and step; `idle` steps decode nothing."""
    prompt, count = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    length = draw(st.integers(1, 7))
    order = []
    for block in blocks(prompt, count * length, length):
        left = draw(st.permutations(list(block)))
        order.append([])
        while left:
            order[-1] += [[]] * draw(st.integers(0, 2)) if idle else []
            size = draw(st.integers(1, 3))
            order[-1].append(left[:size])
            left = left[size:]
    return prompt, order


def compared(case: dict[str, Any], policy: Policy) -> None:
    wanted = case["steps"]
    order: list[list[list[int]]] = []
    for step in wanted:
        if step["step"] == 0:
            order.append([])
        order[-1].append(step["decoded"])
    table = RowTable(case["setting"]["length"])
    for (view, rows, stored), step in zip(steps(case["setting"]["prompt"], order, policy), wanted, strict=True):
        assert np.flatnonzero(rows).tolist() == step["compute"], step
        assert rows.all() == (step["kind"] == "full")
        check_rows(rows, view, None, stored)
        table.add(rows)
    assert sum(table.computed) == case["rows_computed"]
    assert table.cache_ratio == pytest.approx(1 - case["rows_computed"] / case["rows_full"])
    assert table.cache_ratio == pytest.approx(case.get("cache_ratio", table.cache_ratio), abs=1e-6)


@cases("dkv_decode")
def test_decode_of_the_oracles(case: dict[str, Any]) -> None:
    compared(case, Decode(case["setting"]["refresh"], case["setting"]["form"]))


@cases("dkv_greedy")
def test_greedy_of_the_oracles(case: dict[str, Any]) -> None:
    setting = case["setting"]
    compared(case, Greedy(setting["refresh"], setting["window"], setting["window_center"]))


@pytest.mark.parametrize("shift", [None, "un_right"])
@pytest.mark.parametrize("policy", DELAYED, ids=str)
@given(run=runs(idle=True))
@settings(max_examples=40)
def test_a_row_is_reused_only_after_it_was_computed_with_its_token(
    policy: Policy, shift: Shift | None, run: tuple[int, Order]
) -> None:
    """The one-step delay: without it a row would be served as it was when its token was still a mask."""
    final = None
    for view, rows, stored in steps(*run, policy, shift):
        final = np.zeros_like(rows) if final is None else final
        assert not (~rows & ~final).any()
        final |= rows & view.known
        check_rows(rows, view, shift, stored)


@pytest.mark.parametrize("policy", OTHERS, ids=str)
@pytest.mark.parametrize("shift", [None, "un", "un_right"])
@given(run=runs())
@settings(max_examples=40)
def test_every_step_has_the_logits_it_needs(policy: Policy, shift: Shift | None, run: tuple[int, Order]) -> None:
    for view, rows, stored in steps(*run, policy, shift):
        check_rows(rows, view, shift, stored)


@given(run=runs(), refresh=st.integers(1, 5))
def test_decode_recomputes_what_is_masked_or_was_decoded_last(run: tuple[int, Order], refresh: int) -> None:
    for view, rows, _ in steps(*run, Decode(refresh)):
        full = view.index in (0, 1) or view.index % refresh == 0
        last = view.known if view.before is None else view.known & ~view.before
        assert (rows == (full | ~view.known | last)).all()


@given(run=runs(), refresh=st.integers(2, 5))
def test_the_paper_saves_the_second_step_of_a_block_and_nothing_else(run: tuple[int, Order], refresh: int) -> None:
    released, paper = (list(steps(*run, Decode(refresh, form))) for form in ("released", PAPER))
    for (view, rows, _), (_, fewer, _) in zip(released, paper, strict=True):
        if view.index == 1:
            assert view.before is not None
            assert rows.all()
            assert (fewer == ~view.before).all()
        else:
            assert (rows == fewer).all()


def walked(view: View, fresh: Flags, center: int, window: int) -> None:
    """The window as it is defined: left 1, right 1, left 2, right 2, until enough were added or both sides end."""
    added = 0
    for distance in range(1, len(fresh)):
        for position in (center - distance, center + distance):
            inside = 0 <= position < len(fresh)
            if added < window and inside and not view.known[position] and not fresh[position]:
                fresh[position] = True
                added += 1


@pytest.mark.parametrize("center", ["next", "previous"])
@given(run=runs(), window=st.integers(0, 5), refresh=st.integers(1, 4))
def test_greedy_computes_now_last_and_a_window(center: Any, run: tuple[int, Order], window: int, refresh: int) -> None:
    for view, rows, _ in steps(*run, Greedy(refresh, window, center)):
        expected = np.zeros_like(rows)
        if view.before is None or view.index % refresh == 0:
            expected[:] = True
        else:
            last = np.flatnonzero(view.known & ~view.before).tolist()
            expected[list(view.planned) + last] = True
            for position in view.planned if center == "next" else last:
                walked(view, expected, position, window)
        assert (rows == expected).all()


def test_a_window_fills_from_the_other_side_where_one_ends() -> None:
    known = np.isin(np.arange(9), [0, 1, 8])
    view = View(3, 1, range(1, 9), 1, known, np.isin(np.arange(9), [0, 1]), planned=(2,))
    assert np.flatnonzero(~Greedy(4, 3).reused(view)).tolist() == [2, 3, 4, 5, 8]
    assert np.flatnonzero(~Greedy(4, 3, "previous").reused(view)).tolist() == [2, 5, 6, 7, 8]


@given(run=runs())
def test_the_prompt_is_computed_once_in_the_whole_run(run: tuple[int, Order]) -> None:
    prompt, _ = run
    for policy in (Prefill(), PromptDecode(2)):
        for number, (view, rows, _) in enumerate(steps(*run, policy)):
            assert rows[:prompt].all() if number == 0 else not rows[:prompt].any()
            if policy == Prefill() or view.index % 2 == 0:
                assert rows[prompt:].all()


@given(run=runs(), refresh=st.integers(1, 4))
def test_pd_is_decode_of_the_paper_without_the_prompt(run: tuple[int, Order], refresh: int) -> None:
    prompt, _ = run
    pairs = zip(steps(*run, PromptDecode(refresh)), steps(*run, Decode(refresh, PAPER)), strict=True)
    for (_, rows, _), (_, of_decode, _) in pairs:
        assert (rows[prompt:] == of_decode[prompt:]).all()


@given(run=runs())
def test_prefix_and_dual_compute_from_the_block_on_or_the_block(run: tuple[int, Order]) -> None:
    for (view, prefix, _), (_, dual, _) in zip(steps(*run, Prefix()), steps(*run, Dual()), strict=True):
        places = np.arange(len(prefix))
        first = view.index == 0
        assert (prefix == (first | (places >= view.block.start))).all()
        assert (dual == (first | np.isin(places, view.block))).all()


def test_a_shifted_model_keeps_the_row_before_a_block_fresh() -> None:
    known = np.arange(10) < 6
    view = View(5, 1, range(6, 8), 2, known, known)
    for policy, rows in ((Prefix(), [5, 6, 7, 8, 9]), (Dual(), [5, 6, 7])):
        assert np.flatnonzero(rows_to_compute(policy, view, "un_right")).tolist() == rows


@pytest.mark.parametrize("shift", ["un", "right", "un_right"])
def test_a_shifted_prefill_keeps_the_last_rows_fresh(shift: Shift) -> None:
    """The rows of the official code's initial mask, whatever the variant: the last of the prompt and all generated."""
    for view, rows, _ in list(steps(3, [[[3], [4], [5]]], Prefill(), shift))[1:]:
        assert np.flatnonzero(rows).tolist() == [2, 3, 4, 5], view


def test_un_ends_as_the_official_code_does() -> None:
    """Row L-1 is fresh as long as only the prompt is reused, then reused with the first token of the prompt."""
    rows = [np.flatnonzero(rows).tolist() for _, rows, _ in steps(3, [[[4], [3], [6], [5]]], Decode(9, PAPER), "un")]
    assert rows == [[0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [2, 4, 5], [4, 5]]


@pytest.mark.parametrize("policy", [policy for policy in (*DELAYED, *OTHERS) if policy != Prefill()], ids=str)
def test_a_block_that_skips_its_first_steps_still_begins_afresh(policy: Policy) -> None:
    """A step that decodes nothing needs no forward, so that a block may begin at step 2."""
    known = np.arange(8) < 4
    view = View(5, 2, range(4, 8), 2, known, None, planned=(5,) if policy.needs_order else ())
    assert rows_to_compute(policy, view, None)[2:].all()


@pytest.mark.parametrize("policy", [*DELAYED, *OTHERS], ids=str)
def test_views_are_left_alone(policy: Policy) -> None:
    known, before = np.arange(8) < 5, np.arange(8) < 4
    view = View(3, 3, range(2, 8), 2, known, before, planned=(6,) if policy.needs_order else ())
    for shift in (None, "un"):
        policy.reused(view)[:] = True
        rows_to_compute(policy, view, shift)[:] = True
    assert (known == (np.arange(8) < 5)).all()
    assert (before == (np.arange(8) < 4)).all()


def view(**changes: Any) -> View:
    """The third step of a block of 4 positions after 2 of the prompt; position 3 was decoded, then 5."""
    known, before = np.isin(np.arange(6), [0, 1, 3, 5]), np.isin(np.arange(6), [0, 1, 3])
    return replace(View(2, 2, range(2, 6), 2, known, before), **changes)


def at(*positions: int) -> Flags:
    return np.isin(np.arange(6), positions)


ALL = np.ones(6, dtype=bool)


@pytest.mark.parametrize(
    ("rows", "of", "shift", "stored"),
    [
        (at(2, 4), view(), None, ALL),
        (at(1, 3), view(), "un_right", ALL),
        (at(4), view(planned=(4,)), None, ALL),  # position 2 waits for its own step
        (at(3), view(planned=(4,)), "un_right", ALL),
        (at(1), view(), "right", ALL),  # it may lack some
        (at(2, 4), view(), None, at(0, 1, 3, 5)),
        (at(), view(known=ALL), None, ALL),  # nothing is left to predict
    ],
)
def test_rows_that_will_do(rows: Flags, of: View, shift: Shift | None, stored: Flags) -> None:
    check_rows(rows, of, shift, stored)


@pytest.mark.parametrize(
    ("rows", "of", "shift", "stored", "said"),
    [
        (at(2, 4), view(), None, at(0, 1, 5), r"step 2 \(step 2 of the block 2-5\) reuses rows 3, which were never"),
        (at(2), view(), None, ALL, r"no logits for the masked positions 4:.*another policy"),
        (at(2, 4), view(), "un_right", ALL, r"no logits for the masked positions 2, 4:"),
        (at(3), view(), "un", ALL, "masked positions 2:"),
        (at(2), view(planned=(4,)), None, ALL, "masked positions 4:"),
        (at(4), view(planned=(4,)), "right", ALL, "masked positions 4:"),
        (at(1), view(planned=(2, 4)), "right", ALL, "masked positions 4:"),
        (at(0), view(), "right", ALL, "masked positions 2, 4:.*un_right"),
        (np.ones(7, dtype=bool), view(), None, ALL, "another sequence"),
        (ALL, view(), None, np.ones(5, dtype=bool), r"stored rows of shape \(5,\)"),
    ],
)
def test_rows_that_will_not_do(rows: Flags, of: View, shift: Shift | None, stored: Flags, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        check_rows(rows, of, shift, stored)


def test_many_rows_are_not_all_listed() -> None:
    known = np.zeros(40, dtype=bool)
    of = View(1, 1, range(40), 0, known, known)
    with pytest.raises(RuntimeError, match=r"0, 1, 2, 3, 4, 5, 6, 7 and 32 more"):
        check_rows(~known & False, of, None, ~known)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Decode(0), "refresh must be a whole number of at least 1, got 0"),
        (lambda: Decode(2.5), "refresh must be a whole number"),  # type: ignore[arg-type]
        (lambda: Decode(4, "fast"), "unknown form 'fast': choose one of released, paper"),  # type: ignore[arg-type]
        (lambda: Greedy(0), "refresh"),
        (lambda: Greedy(2, -1), "window must be a whole number of at least 0"),
        (lambda: Greedy(2, 1, "here"), "unknown center 'here': choose one of next, previous"),  # type: ignore[arg-type]
        (lambda: PromptDecode(0), "refresh"),
        (lambda: RowTable(0), "at least 1 position"),
        (lambda: RowTable(3).add(ALL), r"sequences of 3 positions, got rows of shape \(6,\)"),
    ],
)
def test_what_cannot_be(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_print() -> None:
    table = RowTable(12)
    assert str(table) == "row       0         10\ncache ratio 0.000"
    for positions in (range(12), [2, 3, 5], [11]):
        table.add(np.isin(np.arange(12), positions))
    assert str(table) == (
        "row       0         10\n"
        "step 0    ############  12 of 12\n"
        "step 1    ..##.#......  3 of 12\n"
        "step 2    ...........#  1 of 12\n"
        "cache ratio 0.556"
    )
    assert table.computed == [12, 3, 1]
    assert table.rows(1).tolist() == np.isin(np.arange(12), [2, 3, 5]).tolist()


def test_long_sequences_share_columns() -> None:
    table = RowTable(250)
    table.add(np.arange(250) >= 4)
    ruler, line, _ = str(table).splitlines()
    assert line == f"step 0    .+{'#' * 82}  246 of 250"  # three rows a column, one in the last
    assert ruler.startswith("row       0         30        60 ")


def test_policies_need_no_torch() -> None:
    code = "import sys; from diffaccel.dlm import policies, row_table; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
