"""Is the Fréchet distance what its definition says, where that can be worked out?"""

import math

import pytest
import torch
from torch import Tensor

from diffaccel.metrics.fid import frechet_distance, gaussian


def covariance(d: int, rank: int, seed: int = 0) -> Tensor:
    factor = torch.randn(d, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factor @ factor.T


def test_gaussian_divides_by_one_less_than_n() -> None:
    mu, sigma = gaussian(torch.tensor([[0.0, 0.0], [2.0, 4.0], [4.0, 2.0]]))
    assert mu.tolist() == [2, 2]
    assert sigma.tolist() == [[4, 2], [2, 4]]


def test_gaussian_of_many_samples_is_that_of_all_of_them() -> None:
    features = torch.randn(10_000, 3) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([1000.0, 0.0, -5.0])
    mu, sigma = gaussian(features)
    torch.testing.assert_close(mu, features.double().mean(dim=0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigma, features.double().T.cov(), rtol=1e-9, atol=1e-12)


def test_gaussian_of_half_precision_is_computed_in_double() -> None:
    mu, sigma = gaussian(torch.full((4096, 1), 100.0, dtype=torch.float16))
    assert (mu.dtype, sigma.dtype) == (torch.float64, torch.float64)
    assert (mu.item(), sigma.item()) == (100, 0)  # the sum alone is no float16


def test_in_one_dimension_it_is_the_distance_of_mean_and_deviation() -> None:
    numbers = ([3.0], [[4.0]]), ([1.0], [[25.0]])
    (mu1, sigma1), (mu2, sigma2) = ([torch.tensor(x) for x in pair] for pair in numbers)
    assert frechet_distance(mu1, sigma1, mu2, sigma2) == pytest.approx((3 - 1) ** 2 + (2 - 5) ** 2)


def test_covariances_that_commute_compare_by_their_eigenvalues() -> None:
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    a, b = torch.rand(2, 6, dtype=torch.float64) * 5
    mu = torch.zeros(6)
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(mu, turn * a @ turn.T, mu, turn * b @ turn.T) == pytest.approx(expected)


def test_covariances_that_do_not_commute() -> None:
    # The trace of the root of a 2 x 2 matrix M is sqrt(tr M + 2 sqrt(det M)).
    a, b = covariance(2, 2, seed=1), covariance(2, 2, seed=2)
    product = a @ b
    assert not torch.allclose(product, b @ a)
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    mu = torch.zeros(2)
    assert frechet_distance(mu, a, mu, b) == pytest.approx((a.trace() + b.trace()).item() - 2 * root)


def test_a_shift_counts_as_its_square_whatever_the_covariance() -> None:
    sigma = covariance(5, 5)
    assert frechet_distance(torch.zeros(5), sigma, torch.full((5,), 0.5), sigma) == pytest.approx(5 * 0.25)


@pytest.mark.parametrize("rank", [3, 40])
def test_is_symmetric_and_zero_for_equals_whatever_the_rank(rank: int) -> None:
    a, b, mu = covariance(40, rank, seed=1), covariance(40, 40, seed=2), torch.zeros(40)
    assert frechet_distance(mu, a, mu, b) == pytest.approx(frechet_distance(mu, b, mu, a), rel=1e-7)
    distances = [frechet_distance(mu, a, mu, a) for a in (covariance(40, rank, seed) for seed in range(20))]
    assert min(distances) >= 0  # rounding goes either way
    assert max(distances) < 1e-9 * a.trace()


def test_a_set_without_variance_leaves_the_variance_of_the_other() -> None:
    sigma, mu = covariance(4, 4), torch.zeros(4)
    nothing = torch.zeros(4, 4)
    for pair in ((nothing, sigma), (sigma, nothing)):
        assert frechet_distance(mu, pair[0], mu, pair[1]) == pytest.approx(sigma.trace().item())


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.zeros(1, 4), ValueError, "at least two samples, got 1"),
        (torch.zeros(4), ValueError, r"\(n, d\), got \(4,\)"),
        (torch.zeros(4, 0), ValueError, r"got \(4, 0\)"),
        (torch.zeros(4, 2, dtype=torch.int64), TypeError, "floating point, got torch.int64"),
        (
            torch.tensor([[0.0], [math.inf], [math.nan]]),
            ValueError,
            "of 2 samples are not finite, the first is number 1",
        ),
    ],
)
def test_gaussian_says_what_is_wrong(features: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gaussian(features)


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (torch.zeros(3), torch.eye(3), r"one dimension, got means of \(3,\) and \(2,\)"),
        (torch.zeros(2), torch.eye(3), r"mu1 and sigma1 do not fit: \(2,\) and \(3, 3\)"),
        (torch.zeros(2), torch.full((2, 2), math.nan), "mu1 or sigma1 holds numbers that are not finite"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "sigma1 is no covariance"),
        (torch.zeros(2), -torch.eye(2), "sigma1 is no covariance"),
    ],
)
def test_distance_says_what_is_wrong(mu: Tensor, sigma: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(mu, sigma, torch.zeros(2), torch.eye(2))
