"""Are weighted sums, stand-ins and byte counts what they claim to be?"""

from __future__ import annotations

import pytest
import torch

from diffaccel.feature import Feature, forecast, stand_in, storage_bytes, weighted_sum

WEIGHTS = [[1.0], [3.5, -2.5], [25 / 18, -5 / 9, 1 / 6], [4.0, -6.0, 4.0, -1.0]]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weighted_sum_is_rounded_once(weights: list[float], dtype: torch.dtype) -> None:
    anchors = [torch.randn(5, 7).to(dtype) for _ in weights]
    result = weighted_sum(anchors, weights)
    exact = sum(w * anchor.double() for w, anchor in zip(weights, anchors, strict=True))
    assert result.dtype == dtype
    # Half a unit in the last place of the dtype, plus what float32 sums lose on terms as large as these.
    rounding = torch.finfo(dtype).eps / 2 * exact.abs()
    summing = 8 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps * 10
    assert ((result.double() - exact).abs() <= rounding + summing).all()


def test_anchors_of_weight_zero_are_not_read() -> None:
    broken = torch.full((3,), float("inf"))
    assert weighted_sum([torch.ones(3), broken], [1.0, 0.0]).tolist() == [1, 1, 1]


def test_reuse_returns_the_anchor_itself() -> None:
    anchor = torch.ones(3)
    assert weighted_sum([anchor, torch.zeros(3)], [1.0, 0.0]) is anchor


def test_inputs_stay_as_they_are() -> None:
    anchors = [torch.ones(3), torch.ones(3), torch.ones(3)]
    weighted_sum(anchors, [3.0, -3.0, 1.0])
    assert all(torch.equal(anchor, torch.ones(3)) for anchor in anchors)


def test_forecast_keeps_the_structure() -> None:
    new = (torch.tensor([4.0]), None, {"mask": torch.tensor([1]), "x": torch.tensor([2.0])})
    old = (torch.tensor([3.0]), None, {"mask": torch.tensor([0]), "x": torch.tensor([0.0])})
    result = forecast([Feature(new), Feature(old)], [2.0, -1.0])
    assert result == (torch.tensor([5.0]), None, {"mask": torch.tensor([1]), "x": torch.tensor([4.0])})


def test_stand_in_has_the_shape_and_no_memory() -> None:
    blank = stand_in((torch.ones(4, 5), torch.ones(2, dtype=torch.long)))
    assert blank[0].shape == (4, 5)
    assert blank[0].isnan().all()
    assert blank[1].tolist() == [0, 0]
    assert blank[0].untyped_storage().nbytes() == 4


def test_like_compares_shape_dtype_and_structure() -> None:
    feature = Feature((torch.ones(2, 3), None))
    assert feature.like(Feature((torch.zeros(2, 3), None)))
    assert not feature.like(Feature((torch.zeros(2, 4), None)))
    assert not feature.like(Feature((torch.zeros(2, 3).double(), None)))
    assert not feature.like(Feature([torch.zeros(2, 3), None]))


def test_shared_storage_counts_once() -> None:
    joint = torch.ones(8, 4)
    assert storage_bytes([Feature((joint[:3], joint[3:])), Feature(torch.ones(2))]) == 8 * 4 * 4 + 2 * 4
