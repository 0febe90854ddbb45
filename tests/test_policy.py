"""Do the metrics of policies give the numbers that follow from their definitions?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffaccel.metrics.policy import action_error, success_rate


def test_the_error_is_a_root_mean_square_in_the_unit_of_the_actions() -> None:
    reference = torch.randn(3, 8, 2)
    actions = reference.clone()
    actions[0] += 0.25  # everywhere
    actions[1, 0, 0] += 4  # in one of 16 numbers: sqrt(16 / 16)
    assert action_error(actions, reference).tolist() == pytest.approx([0.25, 1, 0], abs=1e-6)


def test_half_precision_actions_are_compared_in_full_precision() -> None:
    reference = torch.zeros(1, 4, 2, dtype=torch.float16)
    assert action_error(reference + 2**-14, reference).item() == 2**-14  # its square is not a float16


def test_the_success_rate_has_wilsons_interval() -> None:
    found = success_rate([True] * 45 + [False] * 5)
    # Worked out from the formula with z = 1.96.
    assert (found.value, found.n) == (0.9, 50)
    assert (found.low, found.high) == pytest.approx((0.7864, 0.9565), abs=5e-5)
    assert success_rate(torch.ones(10).bool()).low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)


@pytest.mark.parametrize(
    ("actions", "reference", "error", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(1, 3), ValueError, "one shape"),
        (torch.zeros(0, 2), torch.zeros(0, 2), ValueError, "at least one sample"),
        (torch.zeros(2), torch.zeros(2), ValueError, r"\(n, \.\.\.\)"),
        (torch.zeros(1, 2).int(), torch.zeros(1, 2).int(), TypeError, "floating point, got torch.int32"),
        (torch.full((1, 2), math.nan), torch.zeros(1, 2), ValueError, "actions has values that are not finite"),
    ],
)
def test_bad_actions_are_refused(actions: Tensor, reference: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        action_error(actions, reference)


def test_bad_successes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        success_rate([])
