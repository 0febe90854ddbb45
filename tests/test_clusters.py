"""Are dimensions that move alike found, and does each group get the solver that suits it?"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffaccel.clusters import amplification, choose, cluster, describe, solver_errors, table
from diffaccel.descriptors import KINDS
from diffaccel.forecast import POOL, SOLVERS, STRICT_POOL
from diffaccel.moments import Moments

ORACLES = json.loads((Path(__file__).parent / "oracles" / "hyca.json").read_text())
SELECTIONS = [case for case in ORACLES["cases"] if case["kind"] == "selection"]
PRICES = {name: amplification(name) for name in SOLVERS}


def moments_of(series: Tensor) -> Moments:
    return Moments.of(series, 0, -1, tuple(range(len(series))))


def kinds_of_motion(dims: int, steps: int = 20, seed: int = 0) -> Tensor:
    """Slow drifts, swings, and flips at every step, `dims` dimensions of each, shape (steps, 32, 3 dims)."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(steps).view(-1, 1, 1)
    motions = [0.1 * t, torch.sin(0.9 * t), 3 * (-1.0) ** t]
    parts = [motion * (1 + 0.05 * torch.randn(1, 32, dims, generator=generator)) for motion in motions]
    return torch.cat(parts, 2) + 1e-3 * torch.randn(steps, 32, 3 * dims, generator=generator)


def test_the_table_holds_z_scores() -> None:
    descriptors = torch.rand(len(KINDS), 50) * 9
    rows = table(descriptors)
    assert rows.shape == (50, 6)
    assert torch.allclose(rows.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rows.std(0), torch.ones(6, dtype=torch.float64))
    # Third differences are not used; ratios go through log1p, so stretching (1 + ratio) by a power changes nothing.
    other = descriptors.double()
    other[KINDS.index("third_difference")] *= -7
    for kind in ("jerk_ratio", "curvature_ratio"):
        other[KINDS.index(kind)] = (1 + other[KINDS.index(kind)]) ** 2 - 1
    other[KINDS.index("energy")] = 5 * other[KINDS.index("energy")] + 2
    assert torch.allclose(table(other), rows)
    other[KINDS.index("energy")] **= 2
    assert not torch.allclose(table(other), rows)


def test_a_descriptor_that_is_the_same_everywhere_says_nothing() -> None:
    descriptors = torch.rand(len(KINDS), 10)
    descriptors[KINDS.index("energy")] = 3.0
    rows = table(descriptors)
    assert rows.isfinite().all()
    assert (rows == 0).all(0).sum() == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_separate_kinds_of_motion_are_found(seed: int) -> None:
    labels = cluster(moments_of(kinds_of_motion(12)).descriptors[0], 3, seed)
    groups = [set(labels[i : i + 12]) for i in (0, 12, 24)]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert set.union(*groups) == {0, 1, 2}


def test_clear_groups_are_called_clear_and_stable() -> None:
    one, two = moments_of(kinds_of_motion(12)), moments_of(kinds_of_motion(12, seed=1))
    clear = describe(one.merged(two), 3)
    assert clear["silhouette"] > 0.8
    assert clear["rand"] == 1
    noise = [moments_of(torch.randn(20, 32, 36, generator=torch.Generator().manual_seed(i))) for i in (0, 1)]
    vague = describe(noise[0].merged(noise[1]), 3)
    assert vague["silhouette"] < 0.4
    assert abs(vague["rand"]) < 0.3


def test_fewer_dimensions_than_clusters() -> None:
    assert sorted(cluster(torch.rand(len(KINDS), 3), 8)) == [0, 1, 2]


@pytest.mark.parametrize("case", SELECTIONS, ids=lambda case: case["id"])
def test_errors_and_best_solvers_of_the_oracles(case: dict[str, Any]) -> None:
    moments = moments_of(torch.tensor(case["series"], dtype=torch.float64).view(-1, 1, 1))
    errors = solver_errors(moments, list(case["mse"]), interval=1, horizon=1)
    found = {name: float(values) for name, values in errors.items()}
    assert found == pytest.approx(case["mse"], rel=2e-5, abs=3e-5)
    (best,) = choose({name: errors[name] for name in case["pool"]}, [0], PRICES)
    assert best in case["best"]
    # Equals go to the smallest sum of absolute weights, whatever the order of the pool.
    assert best == min(case["best"], key=PRICES.__getitem__)
    assert choose({name: errors[name] for name in reversed(case["pool"])}, [0], PRICES) == (best,)


@pytest.mark.parametrize("slope", [0.1, 1 / 3, math.pi, 1e3])
def test_rounding_does_not_decide_on_straight_lines(slope: float) -> None:
    """All solvers but reuse continue a line: the one that enlarges noise the least is taken."""
    series = slope * torch.arange(16).view(-1, 1, 1) + torch.randn(1, 40, 1)
    for interval in (1, 2, 4):
        errors = solver_errors(moments_of(series), POOL, interval, interval)
        assert choose(errors, [0], PRICES) == ("rk2",)


def test_what_stands_still_is_reused() -> None:
    errors = solver_errors(moments_of(torch.randn(1, 40, 1).expand(12, -1, -1)), POOL, 3, 2)
    assert choose(errors, [0], PRICES) == ("reuse",)


@pytest.mark.parametrize(("interval", "horizon"), [(1, 1), (3, 2), (4, 3), (2, 5)])
def test_solver_errors_are_those_of_the_features(interval: int, horizon: int) -> None:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(15, 30, 4, generator=generator, dtype=torch.float64).cumsum(0)
    found = solver_errors(moments_of(series), STRICT_POOL, interval, horizon)
    assert tuple(found) == STRICT_POOL
    for name, values in found.items():
        squares = []
        for newest in range(2 * interval, 15):
            for target in range(newest + 1, min(newest + horizon, 14) + 1):
                times = [newest - j * interval for j in range(3)]
                weights = SOLVERS[name].weights([float(time) for time in times], float(target))
                missed = series[target] - sum(w * series[a] for w, a in zip(weights, times, strict=True))
                squares.append(missed.square().mean(0))
        assert torch.allclose(values, torch.stack(squares).mean(0), rtol=1e-4), name


def test_runs_that_are_too_short_are_refused() -> None:
    solver_errors(moments_of(torch.randn(8, 3, 2)), POOL, 3, 2)
    with pytest.raises(ValueError, match="7 steps are too short to choose solvers at interval 3: it takes 8 steps"):
        solver_errors(moments_of(torch.randn(7, 3, 2)), POOL, 3, 2)


def test_each_cluster_chooses_by_its_own_dimensions() -> None:
    errors = {"tf1": torch.tensor([1.0, 5.0, 1.0]), "ab2": torch.tensor([2.0, 2.0, 2.0]), "reuse": torch.ones(3) * 9}
    assert choose(errors, [0, 1, 0], PRICES) == ("tf1", "ab2")
    # Means over the dimensions of a cluster: (1 + 5) / 2 against 2.
    assert choose(errors, [0, 0, 1], PRICES) == ("ab2", "tf1")


def test_ties_go_to_the_smaller_amplification() -> None:
    tied = {"ab2": 1.0, "rk2": 1.0 + 1e-12, "tf1": 1.0}
    tensors = {name: torch.tensor([value], dtype=torch.float64) for name, value in tied.items()}
    assert tensors["rk2"] > tensors["tf1"]
    assert choose(tensors, [0], PRICES) == ("rk2",)
    apart = {"ab2": torch.tensor([1.0]), "rk2": torch.tensor([1.0 + 1e-6])}
    assert choose({name: values.double() for name, values in apart.items()}, [0], PRICES) == ("ab2",)


def test_a_cluster_without_dimensions_does_no_harm() -> None:
    errors = {"tf1": torch.tensor([1.0, 1.0]), "ab2": torch.tensor([2.0, 0.5])}
    chosen = choose(errors, [0, 2], PRICES)
    assert (len(chosen), chosen[0], chosen[2]) == (3, "tf1", "ab2")


def test_amplification_is_the_sum_of_absolute_weights() -> None:
    expected = {"reuse": 1, "rk2": 2, "tf1": 3, "ab2": 5, "am3": 25 / 6, "bdf2_extrapolated": 17 / 3}
    assert {name: PRICES[name] for name in POOL} == pytest.approx(expected)
