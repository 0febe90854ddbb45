"""Is the inception score that of its definition, and of torchmetrics?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore

from diffaccel.metrics.inception_score import inception_score


def test_it_is_that_of_torchmetrics_where_the_splits_are_equal() -> None:
    logits = torch.randn(120, 12) * 3
    metric = InceptionScore(feature=nn.Identity(), splits=10)
    metric.update(logits.double())
    torch.manual_seed(7)
    mean, deviation = (value.item() for value in metric.compute())
    found = inception_score(logits, seed=7)
    assert found == pytest.approx((mean, deviation * math.sqrt(9 / 10)), rel=1e-12)  # theirs is of a sample
    assert inception_score(logits, seed=8) != pytest.approx(found, rel=1e-4)


def test_certain_pictures_score_the_number_of_their_classes() -> None:
    logits = 100 * torch.eye(5).repeat(40, 1)
    assert inception_score(logits, splits=1) == pytest.approx((5, 0))
    assert inception_score(logits[::5], splits=4) == pytest.approx((1, 0))  # all of one class


def test_undecided_pictures_score_one() -> None:
    assert inception_score(torch.full((30, 7), 2.5)) == pytest.approx((1, 0))


def test_two_classes_by_hand() -> None:
    # p(y|x) = (3/4, 1/4) and (1/4, 3/4), p(y) = (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log()
    expected = math.exp(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert inception_score(logits, splits=1)[0] == pytest.approx(expected, rel=1e-6)


def test_an_uneven_number_leaves_no_small_rest() -> None:
    # 21 certain pictures of 3 classes in 10 splits: torch.chunk would make 7 splits, numpy and we 10 of 2 or 3.
    logits = 50 * torch.eye(3).repeat(7, 1)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    parts = (logits[order].argmax(dim=1)[start:end] for start, end in zip(_bounds(21), _bounds(21)[1:], strict=False))
    scores = [
        math.exp(torch.distributions.Categorical(part.bincount(minlength=3) / len(part)).entropy()) for part in parts
    ]
    assert inception_score(logits)[0] == pytest.approx(sum(scores) / 10, rel=1e-5)


def _bounds(n: int) -> list[int]:
    """Borders of ten parts, the first n % 10 of which have one more."""
    return [n // 10 * i + min(i, n % 10) for i in range(11)]


def test_extreme_logits_and_the_random_state() -> None:
    state = torch.get_rng_state()
    mean, _ = inception_score(1e4 * torch.eye(10).repeat(10, 1), splits=1)
    assert mean == pytest.approx(10)
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("logits", "splits", "message"),
    [
        (torch.zeros(20), 10, r"\(n, classes\) .*got \(20,\)"),
        (torch.zeros(20, 1), 10, "at least 2 classes"),
        (torch.zeros(9, 5), 10, "got 9 pictures and 10 splits"),
        (torch.zeros(9, 5), 0, "got 9 pictures and 0 splits"),
        (torch.full((20, 5), math.inf), 10, "not finite"),
    ],
)
def test_bad_input_is_refused(logits: Tensor, splits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inception_score(logits, splits)
