"""Are weighted sums, stand-ins and byte counts what they claim to be?"""

from __future__ import annotations

import pytest
import torch

from diffaccel.feature import (
    Feature,
    dims_axis,
    forecast,
    stand_in,
    storage_bytes,
    weighted_sum,
    weighted_sum_by_dimension,
)

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


SHAPES = [(7,), (2, 7), (2, 5, 7), (2, 7, 3, 4), (1, 7, 2, 3, 4)]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_columns_are_one_weighted_sum(weights: list[float], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    anchors = [torch.randn(shape).to(dtype) for _ in weights]
    result = weighted_sum_by_dimension(anchors, torch.tensor(weights).unsqueeze(1).expand(-1, 7))
    assert result.dtype == dtype
    # The same sum in another order: at most one step of the dtype, and what cancels in float32.
    rounding = torch.finfo(dtype).eps * result.float().abs() + 80 * torch.finfo(torch.float32).eps
    assert ((result.float() - weighted_sum(anchors, weights).float()).abs() <= rounding).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_dimension_has_its_own_weights(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    anchors, weights = [torch.randn(shape).to(dtype) for _ in range(3)], torch.randn(3, 7)
    before = [anchor.clone() for anchor in anchors]
    result = weighted_sum_by_dimension(anchors, weights)
    axis = dims_axis(anchors[0])
    assert (result.dtype, result.shape, shape[axis]) == (dtype, shape, 7)
    for d in range(7):
        parts = torch.stack([anchor.select(axis, d).double() for anchor in anchors], dim=-1)
        exact = parts @ weights[:, d].double()
        rounding = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5
        assert ((result.select(axis, d) - exact).abs() <= rounding).all()
    assert all(torch.equal(anchor, old) for anchor, old in zip(anchors, before, strict=True))


def test_bfloat16_is_summed_in_float32() -> None:
    """1000 - 999 times an anchor one step of bfloat16 away: a sum in bfloat16 would be off by several."""
    anchors = [torch.tensor([1.0, 1.0]).bfloat16(), torch.tensor([1.0, 1.0078125]).bfloat16()]
    result = weighted_sum_by_dimension(anchors, torch.tensor([[1000.0, 1000.0], [-999.0, -999.0]]))
    assert result.tolist() == [1.0, pytest.approx(1 - 999 * 0.0078125, rel=0.004)]


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 7, 5, 5)])
def test_weights_for_another_number_of_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"has 7 dimensions, the calibration is for 5: .*`diffaccel calibrate`"):
        weighted_sum_by_dimension([torch.zeros(shape)], torch.ones(1, 5))


def test_forecast_by_dimension_keeps_what_is_no_feature() -> None:
    new = (torch.tensor([[4.0, 4.0]]), torch.tensor([1]), None)
    old = (torch.tensor([[3.0, 3.0]]), torch.tensor([0]), None)
    weights = {0: torch.tensor([[2.0, 1.0], [-1.0, 0.0]])}
    result = forecast([Feature(new), Feature(old)], weights)
    assert (result[0].tolist(), result[1].tolist(), result[2]) == ([[5.0, 4.0]], [1], None)


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
