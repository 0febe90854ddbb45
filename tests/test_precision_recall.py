"""Are precision and recall those of the definition, and right where they can be seen?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffaccel.metrics import precision_recall as module
from diffaccel.metrics.precision_recall import covered, precision_recall


def by_definition(samples: Tensor, reference: Tensor, k: int) -> list[bool]:
    """Equation 1 of Kynkaanniemi et al. 2019, one pair after the other."""
    radii = [sorted(math.dist(a, b) for j, b in enumerate(reference) if j != i)[k - 1] for i, a in enumerate(reference)]
    return [any(math.dist(x, a) <= r for a, r in zip(reference, radii, strict=True)) for x in samples]


@pytest.mark.parametrize(("k", "d", "spread"), [(3, 4, 1.0), (1, 2, 0.5), (5, 12, 1.5)])
def test_it_is_the_definition(k: int, d: int, spread: float) -> None:
    samples, reference = torch.randn(50, d).double() * spread + 0.3, torch.randn(70, d).double()
    inside, found = by_definition(samples, reference, k), by_definition(reference, samples, k)
    assert covered(samples, reference, k).tolist() == inside
    assert precision_recall(samples, reference, k) == (sum(inside) / 50, sum(found) / 70)
    assert 0 < sum(inside) < 50


def test_a_line_by_hand() -> None:
    # Reference 0, 1, 3: with k = 1 the radii are 1, 1, 2, so the manifold is [-1, 5].
    samples = torch.tensor([[-1.01], [-1.0], [2.0], [5.0], [5.01]])
    assert covered(samples, torch.tensor([[0.0], [1.0], [3.0]]), k=1).tolist() == [False, True, True, True, False]
    # With k = 2 they are 3, 2, 3: [-3, 6].
    assert covered(torch.tensor([[-3.0], [6.0], [6.01]]), torch.tensor([[0.0], [1.0], [3.0]]), k=2).tolist() == [
        True,
        True,
        False,
    ]


def test_a_set_covers_itself_and_far_sets_cover_nothing_of_each_other() -> None:
    x = torch.randn(200, 32)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_dropping_modes_costs_recall_and_inventing_them_costs_precision() -> None:
    two, one = torch.randn(200, 2), torch.randn(200, 2)
    two[100:] += 1000
    assert precision_recall(one, two)[0] > 0.9
    assert precision_recall(one, two)[1] == pytest.approx(0.5, abs=0.05)
    assert precision_recall(two, one)[0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_pictures_that_come_in_copies_cover_them_however_the_blocks_fall(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The radii are 0: what matrix products leave of a distance of 0 differs from block to block.
    monkeypatch.setattr(module, "BLOCK", 100 * rows)
    pictures = torch.rand(20, 2048)
    copies = pictures.repeat_interleave(5, 0)
    for n in (1, 3, 20):
        assert covered(pictures[:n], copies).all()
        assert not covered(pictures[:n] + 1e-3, copies).any()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, reference = torch.randn(41, 6), torch.randn(53, 6)
    whole = covered(samples, reference)
    monkeypatch.setattr(module, "BLOCK", 7 * 53)
    assert covered(samples, reference).equal(whole)


@pytest.mark.parametrize(
    ("samples", "reference", "k", "message"),
    [
        (torch.zeros(9, 2), torch.zeros(3, 2), 3, "reference must have at least 4 rows, got 3"),
        (torch.zeros(3, 2), torch.zeros(9, 2), 3, "features must have at least 4 rows, got 3"),
        (torch.zeros(9, 2), torch.zeros(9, 3), 3, "2 dimensions and the reference 3"),
        (torch.zeros(9, 2), torch.full((9, 2), math.nan), 3, "reference has values that are not finite"),
        (torch.zeros(9, 2), torch.zeros(9, 2), 0, "k must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(samples: Tensor, reference: Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        precision_recall(samples, reference, k)


def test_a_single_sample_can_be_judged_by_a_manifold_of_enough() -> None:
    reference = torch.randn(20, 2)
    assert covered(reference[:1] + 1e-6, reference).tolist() == [True]
    with pytest.raises(ValueError, match="the reference must have at least 4 rows, got 3"):
        covered(reference, reference[:3])
