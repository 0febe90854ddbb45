"""Do the metrics give the numbers that follow from their definitions?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from diffaccel.metrics.parity import identical, psnr, relative_l2
from diffaccel.metrics.speed import Timing, alternate


def test_psnr_of_a_constant_difference_is_minus_20_log10_of_it() -> None:
    reference = torch.full((3, 3, 4, 5), 0.4)
    image = reference + torch.tensor([0.1, 0.01, 0.5]).view(3, 1, 1, 1)
    assert psnr(image, reference).tolist() == pytest.approx([20, 40, -20 * math.log10(0.5)], abs=1e-4)


def test_psnr_averages_over_pixels_before_the_logarithm() -> None:
    image = torch.zeros(1, 1, 2, 5)
    image[0, 0, 0, 0] = 1  # mean square 1 / 10
    assert psnr(image, torch.zeros_like(image)).item() == pytest.approx(10)


def test_psnr_is_infinite_only_where_images_are_identical() -> None:
    reference = torch.rand(2, 3, 4, 4) * 0.5
    image = reference.clone()
    image[1] += 1e-3
    assert psnr(image, reference).isinf().tolist() == [True, False]


def test_psnr_of_half_precision_images_is_computed_in_full_precision() -> None:
    reference = torch.zeros(1, 3, 64, 64, dtype=torch.float16)
    image = torch.full_like(reference, 2**-14)  # its square is not a float16
    assert psnr(image, reference).item() == pytest.approx(-20 * math.log10(2**-14), abs=1e-9)


@pytest.mark.parametrize(
    ("image", "reference", "error", "message"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4), ValueError, r"one shape, got \(1, 3, 4, 4\) and \(2, 3"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), ValueError, r"\(n, c, h, w\), got \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, 4, 4), ValueError, "at least one sample"),
        (torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), -1.0), ValueError, r"reference must lie in \[0, 1\]"),
        (torch.full((1, 3, 4, 4), math.nan), torch.zeros(1, 3, 4, 4), ValueError, "image must lie in"),
        (torch.zeros(1, 3, 4, 4).byte(), torch.zeros(1, 3, 4, 4).byte(), TypeError, "floating point, got torch.uint8"),
    ],
)
def test_psnr_says_what_is_wrong(image: Tensor, reference: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        psnr(image, reference)


def test_relative_l2_is_in_units_of_the_reference() -> None:
    x = torch.randn(4, 3, 5)
    factors = torch.tensor([2.0, 1.0, 0.5, -1.0])
    assert relative_l2(factors.view(4, 1, 1) * x, x).tolist() == pytest.approx([1, 0, 0.5, 2])


def test_relative_l2_to_a_zero_reference() -> None:
    zero = torch.zeros(2, 6)
    assert relative_l2(torch.stack([torch.zeros(6), torch.ones(6)]), zero).tolist() == [0, math.inf]


def test_identical_answers_per_sample_and_sees_one_bit() -> None:
    x = torch.rand(3, 2, 2)
    y = x.clone()
    y[1, 0, 1] = torch.nextafter(y[1, 0, 1], torch.tensor(2.0))
    assert identical(x, y).tolist() == [True, False, True]
    assert not identical(torch.full((1, 2), math.nan), torch.full((1, 2), math.nan)).any()


def test_identical_refuses_to_compare_dtypes() -> None:
    with pytest.raises(TypeError, match=r"torch.float32 and torch.float16"):
        identical(torch.zeros(1, 2), torch.zeros(1, 2).half())


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_alternate_takes_turns_and_reverses_every_other_round() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    alternate(runs, rounds=3, warmup=2, progress=False)
    assert "".join(order) == "abc" + "cba" + "abc" + "cba" + "abc"


def test_alternate_cancels_the_drift_of_the_machine() -> None:
    clock, cpu_clock, slowness = Clock(), Clock(), iter([100.0, 100.0, 1.0, 1.0, 2.0, 2.0, 30.0, 30.0])

    def run(cost: float) -> None:
        clock.now += cost * next(slowness)
        cpu_clock.now += 2 * cost

    runs = {"slow": lambda: run(4), "fast": lambda: run(1)}
    timings = alternate(runs, rounds=3, warmup=1, progress=False, clock=clock, cpu_clock=cpu_clock)
    assert timings["slow"].seconds == [4, 8, 120]
    assert (timings["slow"].median, timings["slow"].spread) == (8, (4, 120))
    assert timings["fast"].ratio(timings["slow"]) == pytest.approx(0.25)
    assert timings["fast"].cpu_seconds == [2, 2, 2]
    assert timings["fast"].ratio(timings["slow"], cpu=True) == pytest.approx(0.25)


def test_what_is_entered_during_a_run_is_not_timed() -> None:
    clock, inside = Clock(), []

    @contextmanager
    def slow() -> Iterator[None]:
        clock.now += 100
        inside.append("in")
        yield
        inside.append("out")
        clock.now += 100

    def run() -> None:
        assert inside[-1] == "in"
        clock.now += 2

    timings = alternate({"a": run}, 2, 1, progress=False, clock=clock, cpu_clock=clock, during={"a": slow})
    assert timings["a"].seconds == [2, 2]
    assert inside == ["in", "out"] * 3


def test_ratio_is_the_median_of_ratios_and_not_the_ratio_of_medians() -> None:
    slow, fast = Timing([1, 10, 4], [1, 1, 1]), Timing([3, 5, 1], [1, 1, 1])
    assert fast.ratios(slow) == [3, 0.5, 0.25]
    assert fast.ratio(slow) == 0.5
    assert fast.median / slow.median == 0.75


@pytest.mark.parametrize(
    ("names", "rounds", "warmup", "message"),
    [("", 5, 1, "runs is empty"), ("a", 0, 1, "got 0 and 1"), ("a", 1, -1, "got 1 and -1")],
)
def test_alternate_says_what_is_wrong(names: str, rounds: int, warmup: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alternate(dict.fromkeys(names, list), rounds, warmup, progress=False)


def test_timings_of_different_calls_are_not_paired() -> None:
    with pytest.raises(ValueError, match="1 and 2 rounds cannot be paired"):
        Timing([1], [1]).ratio(Timing([1, 2], [1, 2]))
