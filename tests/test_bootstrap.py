"""Do the intervals hold what they say they hold?"""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from diffaccel.metrics import bootstrap
from diffaccel.metrics.bootstrap import Estimate, mean_interval, share_interval, statistic_interval


def coverage(estimates: list[Estimate], truth: float) -> float:
    return sum(e.low <= truth <= e.high for e in estimates if e.low is not None and e.high is not None) / len(estimates)


def test_the_interval_of_a_mean_has_the_width_of_theory() -> None:
    values = torch.randn(400, dtype=torch.float64) * 3 + 5
    found = mean_interval(values, resamples=4000)
    margin = 1.96 * values.std(unbiased=False).item() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean().item(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin), abs=0.1 * margin)
    assert found.n == 400


def test_19_of_20_intervals_of_a_mean_hold_the_truth() -> None:
    # 600 sets: the share of hits has a standard error of 0.009; the bootstrap at n = 50 is short by about 0.01.
    samples = torch.rand(600, 50).log().neg()  # skewed, with mean 1
    assert coverage([mean_interval(x, resamples=400, seed=i) for i, x in enumerate(samples)], 1) == pytest.approx(
        0.93, abs=0.03
    )


def test_a_higher_level_gives_a_longer_interval_and_equal_values_none_at_all() -> None:
    values = torch.randn(30)
    wide, narrow = mean_interval(values, level=0.99), mean_interval(values, level=0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert mean_interval([2.0, 2.0, 2.0]) == Estimate(2, 2, 2, 3)


def test_one_value_has_no_interval() -> None:
    estimate = mean_interval([4.5])
    assert estimate == Estimate(4.5, None, None, 1)
    assert json.loads(json.dumps(estimate.as_dict())) == {"value": 4.5, "low": None, "high": None, "n": 1}


def test_resampling_is_repeatable_leaves_the_random_state_alone_and_fits_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, state = torch.randn(40), torch.get_rng_state()
    first = mean_interval(values, seed=3)
    statistic_interval(lambda rows: values[rows].mean().item(), 40, resamples=5)
    assert torch.get_rng_state().equal(state)
    assert mean_interval(values, seed=3) == first
    assert mean_interval(values, seed=4) != first
    monkeypatch.setattr(bootstrap, "BLOCK", 40 * 7)  # seven sets at once
    split = mean_interval(values, seed=3)
    assert (split.low, split.high) == pytest.approx((first.low, first.high), abs=0.05)


def variance(values: Tensor) -> float:
    return values.var(unbiased=False).item()


def test_a_statistic_gets_the_standard_error_of_theory() -> None:
    # The variance of n normal numbers has a standard error of sigma^2 sqrt(2/n).
    values = torch.randn(500, dtype=torch.float64)
    found = statistic_interval(lambda rows: variance(values[rows]), 500, resamples=1000)
    assert found.value == variance(values)
    assert (found.high - found.value) == pytest.approx(1.96 * math.sqrt(2 / 500), rel=0.2)
    assert found.high - found.value == pytest.approx(found.value - found.low)


def test_resampled_sets_are_of_the_same_size_and_drawn_with_replacement() -> None:
    drawn: list[Tensor] = []
    statistic_interval(lambda rows: float(drawn.append(rows) or 0), 30, resamples=50)
    assert drawn[0].equal(torch.arange(30))
    assert len(drawn) == 51
    assert all(len(rows) == 30 and len(rows.unique()) < 30 for rows in drawn[1:])
    assert torch.cat(drawn[1:]).unique().equal(torch.arange(30))


def test_a_distance_is_held_where_percentiles_of_resampled_distances_would_miss_it() -> None:
    # The squared distance of the mean from a reference in 200 dimensions: resampling adds the variance of the mean.
    reference, values = torch.zeros(200), torch.randn(50, 200)

    def distance(rows: Tensor) -> float:
        return (values[rows].mean(dim=0) - reference).square().sum().item()

    resampled = [distance(torch.randint(50, (50,))) for _ in range(200)]
    found = statistic_interval(distance, 50)
    assert min(resampled) > found.value
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(distance(torch.arange(50)))


def test_wilsons_interval_is_that_of_the_books() -> None:
    # Newcombe 1998, table I, score interval without continuity correction.
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = share_interval([True] * hits + [False] * (n - hits))
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
        assert (found.value, found.n) == (hits / n, n)


def test_a_share_of_all_is_the_mirror_of_a_share_of_none() -> None:
    none, everything = share_interval(torch.zeros(20).bool()), share_interval(torch.ones(20))
    assert (everything.low, everything.high) == pytest.approx((1 - none.high, 1), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "at least one value"),
        (lambda: mean_interval(torch.zeros(2, 2)), r"got \(2, 2\)"),
        (lambda: mean_interval([1.0, math.inf, math.nan]), "2 of 3 values are not finite"),
        (lambda: mean_interval([1.0, 2.0], resamples=0), "at least 1, got 0"),
        (lambda: mean_interval([1.0, 2.0], level=95), "between 0 and 1, got 95"),
        (lambda: statistic_interval(lambda rows: 0.0, 1), "at least 2 samples and 2 resampled sets, got 1 and 200"),
        (lambda: statistic_interval(lambda rows: math.nan, 5), "not finite"),
        (lambda: share_interval([]), "at least one value"),
        (lambda: share_interval(torch.tensor([0.0, 0.5])), "True or False"),
    ],
)
def test_bad_input_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
