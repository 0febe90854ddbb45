"""Does the runtime of block-wise caching add what a slow implementation by hand adds, in every kind of layer?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffaccel import accelerate
from tests.block_reference import CASES, STEPS, Case, Planned, Rows, drawn

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
orders = pytest.mark.parametrize("order", [0, 1], ids=["reuse", "line"])


def accelerated(case: Case, rows: Rows, order: int = 0) -> Tensor:
    """Outputs with the runtime of diffaccel."""
    network = case.make()
    with accelerate(network, Planned(rows, order), steps=STEPS):
        return case.run(network)


@cases
@orders
def test_any_plan_adds_what_is_added_by_hand(case: Case, order: int) -> None:
    for seed in (0, 1) if case is CASES["unet"] else range(3):
        rows = drawn(case.names(), seed)
        # Idle modules return NaN, and layers that are passed by add up in another order.
        torch.testing.assert_close(accelerated(case, rows, order), case.by_hand(rows, order), rtol=2e-5, atol=2e-5)


@cases
@orders
def test_every_bit_is_equal_where_no_layer_is_passed_by(case: Case, order: int) -> None:
    for always in ("sa",) if order else ("sa", "ffn"):
        rows = drawn(case.names(), 3, always)
        expected = case.by_hand(rows, order)
        found = accelerated(case, rows, order)
        if order:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(found, expected)


@cases
def test_computing_everything_changes_no_bit(case: Case) -> None:
    rows = dict.fromkeys(case.names(), range(STEPS))
    assert torch.equal(accelerated(case, rows, order=1), case.by_hand(rows))


@cases
def test_one_update_adds_what_the_first_call_added(case: Case) -> None:
    rows = dict.fromkeys(case.names(), (0,))
    expected = case.by_hand(rows)
    torch.testing.assert_close(accelerated(case, rows), expected, rtol=1e-5, atol=1e-5)
    # A line through one point is flat.
    torch.testing.assert_close(accelerated(case, rows, order=1), expected, rtol=1e-5, atol=1e-5)
