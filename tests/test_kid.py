"""Is the kernel distance that of its definition, and of torchmetrics?"""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from diffaccel.metrics.kid import kid


def sets(n: int = 60, m: int = 80, d: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, d, generator=generator) + 0.3, torch.randn(m, d, generator=generator)


def test_it_is_torchmetrics_kid_subset_by_subset() -> None:
    features, reference = sets()
    metric = KernelInceptionDistance(feature=nn.Identity(), subsets=20, subset_size=30)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    torch.manual_seed(7)
    theirs = [value.item() for value in metric.compute()]
    assert kid(features, reference, subsets=20, size=30, seed=7) == pytest.approx(theirs, rel=1e-12)
    assert kid(features, reference, subsets=20, size=30, seed=8) != pytest.approx(theirs, rel=1e-3)


def test_it_is_the_definition_worked_out_by_hand() -> None:
    # d = 1: k(x, y) = (xy + 1)^3. Reference {0, 1}: k(0, 1) = 1. Features {1, 2}: k(1, 2) = 27.
    # Across: k(0, 1), k(0, 2), k(1, 1), k(1, 2) = 1, 1, 8, 27, with mean 37/4. 1 + 27 - 2 * 37/4 = 9.5
    assert kid(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]])) == pytest.approx((9.5, 0))


def test_it_is_unbiased_where_the_biased_estimate_is_not() -> None:
    # Two sets of one distribution are at distance 0 in the mean, however small they are.
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(
        [kid(*(torch.randn(8, 4, generator=generator) for _ in range(2)))[0] for _ in range(500)], dtype=torch.float64
    )
    assert abs(values.mean().item()) < 3 * values.std().item() / math.sqrt(500)
    assert (values < 0).any()


def test_subsets_fall_to_the_size_of_the_smaller_set() -> None:
    features, reference = sets(20, 50)
    for a, b in ((features, reference), (reference, features)):
        assert kid(a, b, subsets=9, size=1000) == kid(a, b, subsets=9, size=20)
    mean, deviation = kid(reference + 0.2, reference, subsets=9, size=1000)
    assert deviation == 0
    assert mean == kid(reference + 0.2, reference, subsets=1, size=50)[0]


def test_a_large_offset_does_not_drown_the_distance() -> None:
    # Features of 100 make kernels of 1e12, of which float32 keeps 7 digits.
    generator = torch.Generator().manual_seed(0)
    reference = 100 + torch.randn(50, 8, generator=generator, dtype=torch.float64)
    found = kid((reference + 1).float(), reference.float())[0]
    # The kernel's derivative along the mean m: E k(x, x') - ... = |grad|^2 grows like 9 m^4 (x.m / d)^4 / d
    x, y = reference + 1, reference
    k = lambda a, b: (a @ b.T / 8 + 1) ** 3  # noqa: E731
    off = ~torch.eye(50, dtype=torch.bool)
    expected = k(x, x)[off].mean() + k(y, y)[off].mean() - 2 * k(x, y).mean()
    assert found == pytest.approx(expected.item(), rel=1e-3)


def test_the_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    kid(*sets(), subsets=2, size=10)
    assert torch.get_rng_state().equal(state)


def test_without_torchmetrics_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.kid", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"the kernel distance needs torchmetrics: pip install 'diffaccel\[eval\]'"):
        kid(*sets())


@pytest.mark.parametrize(
    ("features", "reference", "options", "message"),
    [
        (torch.zeros(4), torch.zeros(4, 2), {}, r"features must have shape \(n, dimension\), got \(4,\)"),
        (torch.zeros(4, 2), torch.zeros(1, 2), {}, "reference must have at least 2 rows, got 1"),
        (torch.zeros(4, 2), torch.zeros(4, 3), {}, "features have 2 dimensions and the reference 3"),
        (torch.full((4, 2), math.nan), torch.zeros(4, 2), {}, "features has values that are not finite"),
        (torch.zeros(4, 2), torch.zeros(4, 2), {"size": 1}, "size at least 2, got 100 and 1"),
        (torch.zeros(4, 2), torch.zeros(4, 2), {"subsets": 0}, "got 0 and 1000"),
    ],
)
def test_bad_input_is_refused(features: Tensor, reference: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kid(features, reference, **options)
