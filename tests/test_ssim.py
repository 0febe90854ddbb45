"""Is SSIM the number its definition gives?"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from diffaccel.metrics import ssim as module
from diffaccel.metrics.ssim import ssim

C1, C2 = 0.01**2, 0.03**2


def by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one channel, window by window, as in equation 13 of Wang et al. 2004."""
    ticks = np.exp(-(np.arange(-5.0, 6.0) ** 2) / (2 * 1.5**2))
    weight = np.outer(ticks, ticks) / ticks.sum() ** 2
    values = []
    left, right = np.pad(a, 5, mode="reflect"), np.pad(b, 5, mode="reflect")
    for y, x in np.ndindex(a.shape):
        u, v = left[y : y + 11, x : x + 11], right[y : y + 11, x : x + 11]
        mu, nu = (weight * u).sum(), (weight * v).sum()
        var_u, var_v = (weight * (u - mu) ** 2).sum(), (weight * (v - nu) ** 2).sum()
        cov = (weight * (u - mu) * (v - nu)).sum()
        values.append((2 * mu * nu + C1) * (2 * cov + C2) / ((mu**2 + nu**2 + C1) * (var_u + var_v + C2)))
    return float(np.mean(values))


def test_flat_pictures_differ_in_brightness_alone() -> None:
    a, b = torch.tensor([0.2, 0.5, 1.0]), torch.tensor([0.4, 0.5, 0.0])
    expected = (2 * a * b + C1) / (a**2 + b**2 + C1)
    flat = [x.view(3, 1, 1, 1).expand(3, 3, 12, 15) for x in (a, b)]
    assert ssim(*flat).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_it_is_the_definition_window_by_window_averaged_over_channels() -> None:
    a, b = torch.rand(2, 3, 13, 11, dtype=torch.float64), torch.rand(2, 3, 13, 11, dtype=torch.float64)
    b[1] = 0.7 * a[1] + 0.2
    expected = [np.mean([by_hand(a[i, c].numpy(), b[i, c].numpy()) for c in range(3)]) for i in range(2)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-12)


def test_identical_pictures_score_one_and_negatives_below_zero() -> None:
    x = torch.rand(2, 3, 16, 16)
    scores = ssim(torch.cat([x, 1 - x]), torch.cat([x, x]))
    assert scores[:2].tolist() == pytest.approx([1, 1], abs=1e-12)
    assert (scores[2:] < 0).all()


def test_flat_dark_pictures_are_not_lost_to_cancellation() -> None:
    # In float32 the variance of a flat picture is rounding error, of the size of C2's effect.
    x = torch.full((1, 3, 32, 32), 0.9)
    assert ssim(x + 1e-4, x).item() == pytest.approx(1, abs=1e-6)


def test_each_picture_is_scored_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.rand(5, 3, 12, 12), torch.rand(5, 3, 12, 12)
    whole = ssim(a, b)
    assert whole.shape == (5,)
    assert whole.dtype == torch.float64
    monkeypatch.setattr(module, "BLOCK", 2 * 3 * 12 * 12)  # two pictures at once
    assert ssim(a, b).tolist() == pytest.approx(whole.tolist(), abs=1e-12)
    assert ssim(a[3:4], b[3:4]).tolist() == pytest.approx(whole[3:4].tolist(), abs=1e-12)


def test_without_torchmetrics_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"SSIM needs torchmetrics: pip install 'diffaccel\[eval\]'"):
        ssim(torch.zeros(1, 3, 12, 12), torch.zeros(1, 3, 12, 12))


@pytest.mark.parametrize(
    ("pictures", "reference", "error", "message"),
    [
        (torch.zeros(1, 3, 12, 12), torch.zeros(2, 3, 12, 12), ValueError, r"one shape, got \(1, 3, 12, 12\)"),
        (torch.zeros(3, 12, 12), torch.zeros(3, 12, 12), ValueError, r"pictures must have shape \(n, c, h, w\)"),
        (torch.zeros(0, 3, 12, 12), torch.zeros(0, 3, 12, 12), ValueError, "at least one"),
        (torch.zeros(1, 3, 10, 12), torch.zeros(1, 3, 10, 12), ValueError, r"at least 11 pixels, got \(10, 12\)"),
        (torch.zeros(1, 3, 12, 12), torch.full((1, 3, 12, 12), 1.1), ValueError, r"reference must lie in \[0, 1\]"),
        (torch.full((1, 3, 12, 12), math.nan), torch.zeros(1, 3, 12, 12), ValueError, "pictures must lie"),
        (torch.zeros(1, 3, 12, 12).byte(), torch.zeros(1, 3, 12, 12).byte(), TypeError, "got torch.uint8"),
    ],
)
def test_ssim_says_what_is_wrong(pictures: Tensor, reference: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ssim(pictures, reference)
