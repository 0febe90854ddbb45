"""Do the descriptors of a feature dimension have the values worked out by hand?"""

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

from diffaccel.descriptors import KINDS, descriptors

ORACLES = json.loads((Path(__file__).parent / "oracles" / "hyca.json").read_text())
TOLERANCE = ORACLES["tolerance"]
SELECTIONS = [case for case in ORACLES["cases"] if case["kind"] == "selection"]


def series(*dims: list[float]) -> Tensor:
    """One token, one dimension per list of values."""
    return torch.tensor(dims, dtype=torch.float64).T.unsqueeze(1)


@pytest.mark.parametrize("case", SELECTIONS, ids=lambda case: case["id"])
def test_oracle(case: dict[str, Any]) -> None:
    found = descriptors(series(case["series"]))
    assert set(case["descriptors"]) < set(KINDS)
    for kind, expected in case["descriptors"].items():
        absolute = TOLERANCE["ratios_absolute" if kind.endswith("ratio") else "float64_absolute"]
        assert found[kind].item() == pytest.approx(expected, rel=TOLERANCE["float64_relative"], abs=absolute)


def test_each_dimension_has_its_own() -> None:
    every = descriptors(series(*(case["series"] for case in SELECTIONS)))
    assert list(every) == list(KINDS)
    for i, case in enumerate(SELECTIONS):
        for kind, alone in descriptors(series(case["series"])).items():
            assert every[kind][i].item() == pytest.approx(alone.item(), rel=1e-12, abs=1e-15)


def test_tokens_that_move_in_opposite_ways_do_not_cancel() -> None:
    up = series([0.0, 1.0, 4.0, 9.0, 16.0])
    for kind, values in descriptors(torch.cat([up, -up], dim=1)).items():
        assert torch.allclose(values, descriptors(up)[kind]), kind


def test_averages_are_over_tokens_after_absolute_values_and_ratios_are_of_averages() -> None:
    slow, fast = [0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 3.0, 0.0, 3.0, 0.0]
    found = descriptors(torch.cat([series(slow), series(fast)], dim=1))
    assert found["first_difference"].item() == 2.0
    assert found["second_difference"].item() == 3.0
    assert found["third_difference"].item() == 6.0
    assert found["curvature_ratio"].item() == pytest.approx(1.5)
    assert found["jerk_ratio"].item() == pytest.approx(2.0)
    assert found["energy"].item() == pytest.approx((10 + 6) / 10)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.01, 100), offset=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_units(scale: float, offset: float, seed: int) -> None:
    """Differences scale with the feature and do not see an offset; ratios and flatness see neither."""
    plain = torch.randn(9, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    one, other = descriptors(plain), descriptors(scale * plain + offset)
    for kind in KINDS:
        if kind == "energy":
            assert torch.allclose(descriptors(scale * plain)[kind], scale * one[kind])
        else:
            factor = scale if kind.endswith("difference") else 1.0
            assert torch.allclose(other[kind], factor * one[kind], rtol=1e-4), kind


def test_flatness_of_a_tone_of_noise_and_of_nothing() -> None:
    time = torch.arange(32, dtype=torch.float64)
    tone = (5 + torch.sin(2 * math.pi * 3 * time / 32)).view(-1, 1, 1)
    flip = (-1.0) ** time.view(-1, 1, 1)
    noise = torch.randn(32, 2000, 1, generator=torch.Generator().manual_seed(0))
    impulse = torch.zeros(32, 1, 1)
    impulse[3] = 2.0
    flatness = {
        name: descriptors(x)["spectral_flatness"].item()
        for name, x in {"tone": tone, "flip": flip, "noise": noise, "impulse": impulse}.items()
    }
    assert flatness["tone"] < 1e-9
    assert flatness["flip"] < 1e-9
    assert 0.99 < flatness["noise"] <= 1
    assert flatness["impulse"] == pytest.approx(1, abs=1e-5)
    assert descriptors(torch.full((8, 2, 3), 7.3))["spectral_flatness"].tolist() == pytest.approx([1, 1, 1], abs=0.01)
    assert descriptors(torch.zeros(8, 2, 3))["spectral_flatness"].tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_flatness_of_two_powers_by_hand() -> None:
    """Four steps have two frequencies besides 0, of powers 4 and 16: geometric mean 8, arithmetic mean 10."""
    # cos(pi t / 2) has |X(1)|^2 = 4, (-1)^t has |X(2)|^2 = 16.
    found = descriptors(series([1.0 + 1, 0.0 - 1, -1.0 + 1, 0.0 - 1]))["spectral_flatness"]
    assert found.item() == pytest.approx(0.8)


def test_sixteen_bit_features_are_worked_out_in_float32() -> None:
    half = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    for kind, values in descriptors(half).items():
        assert values.dtype == torch.float32
        assert torch.equal(values, descriptors(half.float())[kind])


@pytest.mark.parametrize("shape", [(3, 2, 5), (8, 5), (8, 0, 5), (8, 2, 2, 5)])
def test_what_has_no_descriptors_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least 4 steps and a token, got \(\d"):
        descriptors(torch.zeros(shape))
