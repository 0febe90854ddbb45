"""Are rows of a model that predicts p from row p-1 reused as in the official code, and never one that logits need?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffaccel.dlm.shift import SHIFTS, predicted, reuse_flags, rows_needed

CASES = json.loads((Path(__file__).parents[1] / "oracles" / "diffusion_lm.json").read_text())["cases"]

Flags = NDArray[np.bool_]
flags = st.lists(st.booleans(), min_size=1, max_size=12).map(np.array)
after_prompts = st.lists(st.booleans(), min_size=1, max_size=12).map(lambda known: np.array([True, *known]))


def cases(kind: str) -> Any:
    found = [case for case in CASES if case["kind"] == kind]
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


def at(positions: list[int], length: int) -> Flags:
    return np.isin(np.arange(length), positions)


@cases("shift_flags")
def test_flags_of_the_oracles(case: dict[str, Any]) -> None:
    known = at(case["known"], case["length"])
    for shift in SHIFTS:
        assert reuse_flags(known, shift).astype(int).tolist() == case[shift], shift
    assert reuse_flags(known, "un", initial=True).astype(int).tolist() == case["un_initial"]
    assert reuse_flags(known, None).tolist() == known.tolist()


@cases("shift_rows_needed")
def test_rows_of_the_oracles(case: dict[str, Any]) -> None:
    masked = at(case["masked"], len(case["masked"]) + len(case["known"]))
    assert np.flatnonzero(rows_needed(masked, shifted=True)).tolist() == case["rows_needed"]
    assert np.flatnonzero(rows_needed(masked, shifted=False)).tolist() == case["masked"]


@pytest.mark.parametrize("initial", [False, True])
@given(known=after_prompts)
def test_no_masked_position_lacks_logits(initial: bool, known: Flags) -> None:
    needed = rows_needed(~known, shifted=True)
    for shift in ("un", "un_right"):
        assert not (reuse_flags(known, shift, initial) & needed).any(), shift


@given(known=flags)
def test_un_right_reuses_no_masked_row_whatever_is_known(known: Flags) -> None:
    reused = reuse_flags(known, "un_right")
    assert not (reused & ~known).any()
    assert not (reused & rows_needed(~known, shifted=True)).any()
    # It is what "right" reuses, less the rows needed; only the last row, which predicts nothing, may be fresh besides.
    assert (reused[:-1] == (known & ~rows_needed(~known, shifted=True))[:-1])[1:].all()


def test_the_last_row_of_un_right_goes_with_the_one_before() -> None:
    assert reuse_flags(at([0, 1, 4], 5), "un_right").tolist() == [True, False, False, False, False]
    assert reuse_flags(at([0, 3, 4], 5), "un_right").tolist() == [False, False, False, True, True]
    assert reuse_flags(at([0], 1), "un_right").tolist() == [True]


def test_each_variant_breaks_what_it_is_said_to_break() -> None:
    known = at([0, 1, 4], 6)
    assert reuse_flags(known, "un")[3]  # row 3 still carries a mask
    assert reuse_flags(known, "right")[1]  # row 1 predicts position 2, which is masked
    assert rows_needed(~known, shifted=True)[1]


@pytest.mark.parametrize("prompt", range(1, 6))
def test_before_anything_is_decoded_all_variants_keep_the_last_row_of_the_prompt_fresh(prompt: int) -> None:
    known = np.arange(6) < prompt
    for shift in SHIFTS:
        assert np.flatnonzero(reuse_flags(known, shift, initial=True)).tolist() == list(range(prompt - 1)), shift


@given(masked=flags, shifted=st.booleans())
def test_the_rows_needed_predict_what_they_are_needed_for(masked: Flags, shifted: bool) -> None:
    needed = rows_needed(masked, shifted)
    assert predicted(needed, shifted)[masked].all()
    for row in np.flatnonzero(needed):  # and not one of them is idle
        fewer = needed.copy()
        fewer[row] = False
        assert not predicted(fewer, shifted)[masked].all()


def test_row_zero_predicts_the_first_two_positions() -> None:
    assert predicted(at([0, 2], 5), shifted=True).tolist() == [True, True, False, True, False]
    assert rows_needed(at([0], 3), shifted=True).tolist() == [True, False, False]
    assert rows_needed(at([0], 1), shifted=True).tolist() == [True]


@given(known=flags)
def test_flags_given_are_left_alone(known: Flags) -> None:
    before = known.copy()
    for result in (
        *(reuse_flags(known, shift, initial) for shift in (None, *SHIFTS) for initial in (False, True)),
        *(function(known, shifted) for function in (rows_needed, predicted) for shifted in (False, True)),
    ):
        assert result.shape == known.shape
        result[:] = ~result
    assert (known == before).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: reuse_flags(at([0], 3), "left"), "unknown shift 'left': choose one of un, right, un_right, or None"),  # type: ignore[arg-type]
        (lambda: reuse_flags(at([], 0), "un"), r"shape \(0,\)"),
        (lambda: reuse_flags(np.array([0, 1]), None), "booleans, one for each position, got int64"),  # type: ignore[arg-type]
        (lambda: rows_needed(np.zeros((2, 2), bool), True), r"shape \(2, 2\)"),
        (lambda: predicted(np.zeros((2, 2), bool), True), r"shape \(2, 2\)"),
    ],
)
def test_what_cannot_be(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
