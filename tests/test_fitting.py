"""Are fitted weights the best there are, and does feedback take out the error that has added up?"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from diffaccel import fitting
from diffaccel.fitting import Fit, Table, fit, joined
from diffaccel.forecast import POOL, SOLVERS, Newton, Taylor
from diffaccel.moments import Moments
from diffaccel.plan import Plan

STEPS = 14
PLAN = Plan.every(4, STEPS, 3, last=True)  # computes 0, 1, 2, 6, 10, 13
FLAT = [1.0] * STEPS
EXACT = Fit(anchors=3, ridge=0.0)


def moments_of(series: Tensor, steps: tuple[int, ...] = tuple(range(STEPS))) -> Moments:
    return Moments.of(series, 0, -1, steps)


def one_group(dims: int) -> Tensor:
    return torch.zeros(dims, dtype=torch.long)


def wandering(dims: int = 6, seed: int = 0) -> Tensor:
    """Features that follow no rule: smooth walks, shape (steps, 80 samples, dims), float64."""
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn(STEPS, 80, dims, generator=generator, dtype=torch.float64).cumsum(0).cumsum(0)
    return walk + 5 * torch.randn(1, 80, dims, generator=generator, dtype=torch.float64)


def missed(series: Tensor, table: Table, labels: Tensor) -> dict[int, Tensor]:
    """By skipped step, F(s) less its forecast, shape (samples, dims): from the features themselves."""
    return {
        s: series[s] - sum(w[labels] * series[a] for w, a in zip(weights.T, anchors, strict=True))
        for (s, anchors), weights in table.rows.items()
    }


@pytest.mark.parametrize("rates", [(0.9, 0.6), (1.1, 0.7), (-0.8, 0.95)])
def test_two_exponentials_are_continued_exactly(rates: tuple[float, float]) -> None:
    """m + c1 r1^t + c2 r2^t: with three anchors the weights are known, whatever m, c1, c2 are."""
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(STEPS, dtype=torch.float64).view(-1, 1, 1)
    size = (1, 60, 4)
    m, c1, c2 = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(3))
    series = m + c1 * rates[0] ** t + c2 * rates[1] ** t
    table = fit(moments_of(series), one_group(4), PLAN, FLAT, EXACT)
    later = {key: rows for key, rows in table.rows.items() if len(key[1]) == 3}
    assert sorted(s for s, _ in later) == [3, 4, 5, 7, 8, 9, 11, 12]
    for (s, anchors), rows in later.items():
        system = torch.tensor([[rate**a for a in anchors] for rate in (1.0, *rates)], dtype=torch.float64)
        known = torch.linalg.solve(system, torch.tensor([rate**s for rate in (1.0, *rates)], dtype=torch.float64))
        assert torch.allclose(rows[0], known, rtol=1e-3, atol=1e-3)
    for error in missed(series, table, one_group(4)).values():
        assert error.square().mean() < 1e-6 * series.var(0).mean()


def test_on_parabolas_the_fit_is_newtons_interpolation() -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(-1, 1, STEPS, dtype=torch.float64).view(-1, 1, 1)
    a, b, c = (torch.randn(1, 50, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    table = fit(moments_of(a + b * t + c * t * t), one_group(3), PLAN, FLAT, EXACT)
    for s, anchors in table.rows:
        times = [float(anchor) for anchor in anchors]
        assert table.weights(times, float(s))[0] == pytest.approx(
            Newton(2).weights(times, float(s)), rel=2e-3, abs=2e-3
        )


def test_on_lines_two_anchors_do() -> None:
    series = torch.randn(1, 50, 3) + torch.randn(1, 50, 3) * torch.arange(STEPS).view(-1, 1, 1)
    table = fit(moments_of(series), one_group(3), PLAN, FLAT, Fit(anchors=2, ridge=0.0))
    assert table.order == 1
    for s, anchors in table.rows:
        times = [float(anchor) for anchor in anchors]
        assert table.weights(times, float(s))[0] == pytest.approx(Newton(1).weights(times, float(s)), abs=1e-4)


@pytest.mark.parametrize("anchors", [1, 2, 3, 5])
def test_without_feedback_every_step_is_a_regression_of_its_own(anchors: int) -> None:
    series, labels = wandering(), torch.tensor([0, 1, 0, 2, 2, 2])
    table = fit(moments_of(series), labels, PLAN, FLAT, Fit(anchors, ridge=0.0))
    computed = PLAN.computed()
    assert [s for s, _ in table.rows] == [s for s in range(STEPS) if s not in computed]
    for (s, used), rows in table.rows.items():
        assert used == tuple(a for a in computed if a < s)[::-1][:anchors]
        assert torch.allclose(rows.sum(1), torch.ones(3, dtype=torch.float64))
        for group in range(3):
            own = series[:, :, labels == group].flatten(1)
            x = torch.stack([own[a] - own[used[0]] for a in used[1:]] or [torch.zeros_like(own[0])], dim=1)
            best = torch.linalg.lstsq(x, (own[s] - own[used[0]]).unsqueeze(1), driver="gelsd").solution.flatten()
            assert torch.allclose(rows[group, 1:], best[: len(used) - 1], rtol=1e-3, atol=1e-3)


def test_no_solver_is_better_than_the_fit() -> None:
    moments, totals = moments_of(wandering()), []
    for labels in (one_group(6), torch.tensor([0, 1, 0, 2, 2, 2]), torch.arange(6)):
        table = fit(moments, labels, PLAN, FLAT, EXACT)
        totals.append(0.0)
        for (s, anchors), rows in table.rows.items():
            fitted = moments.error(rows[labels].T, anchors, s)
            totals[-1] += float(fitted.sum())
            times = [float(anchor) for anchor in anchors]
            for rule in (*(SOLVERS[name] for name in POOL), Taylor(1), Taylor(2), Newton(1), Newton(2)):
                other = moments.error(rule.weights(times, float(s)), anchors, s)
                for group in range(int(labels.max()) + 1):
                    own = labels == group
                    assert fitted[own].sum() <= other[own].sum() * (1 + 1e-4)
    # Finer groups fit better, each dimension for itself best of all.
    assert totals[0] > totals[1] > totals[2]


def test_a_large_ridge_is_plain_reuse() -> None:
    moments = moments_of(wandering())
    table = fit(moments, one_group(6), PLAN, FLAT, Fit(3, ridge=1e9))
    for rows in table.rows.values():
        assert rows[0].tolist() == pytest.approx([1.0] + [0.0] * (rows.shape[1] - 1), abs=1e-6)
    sizes = [
        max(float(rows[0, 1:].norm()) for rows in fit(moments, one_group(6), PLAN, FLAT, Fit(3, ridge)).rows.values())
        for ridge in (0.0, 1e-2, 1.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2] > 0


@pytest.mark.parametrize("feedback", [0.0, 0.5, 1.0])
def test_feedback_takes_out_what_the_anchors_tell_of_the_error_so_far(
    feedback: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a block of skipped steps the error added up holds 1 - feedback of what it told before, exactly."""
    monkeypatch.setattr(fitting, "RIDGE", 0.0)
    series, labels = wandering(), torch.tensor([0, 1, 0, 1, 1, 1])
    response = [-0.02 * (s + 3) for s in range(STEPS)]
    table = fit(moments_of(series), labels, PLAN, response, Fit(3, 0.0, feedback))
    errors = missed(series, table, labels)
    # What a step adds to the latent: its response times its error, in units of the feature's spread at that step.
    added = {s: response[s] / series[s].square().mean().sqrt() * error for s, error in errors.items()}
    blocks = [list(block) for _, block in itertools.groupby(table.rows, key=lambda key: key[1])]
    assert [[s for s, _ in block] for block in blocks] == [[3, 4, 5], [7, 8, 9], [11, 12]]
    debt = torch.zeros_like(series[0])
    for block in blocks:
        anchors = block[0][1]
        before, debt = debt, debt + sum(added[s] for s, _ in block)
        for group in (0, 1):
            own = labels == group
            x = torch.stack([(series[a] - series[anchors[0]])[:, own].flatten() for a in anchors[1:]])
            told, left = x @ before[:, own].flatten(), x @ debt[:, own].flatten()
            size = x.norm(dim=1) * max(debt[:, own].norm(), before[:, own].norm())
            assert ((left - (1 - feedback) * told).abs() <= 1e-4 * size).all()
            if before.any():
                assert (told.abs() > 1e-3 * size).any() or feedback == 1


def test_feedback_makes_the_sum_of_errors_smaller() -> None:
    """Errors that point the same way: single steps get worse, their sum, which is what the picture sees, better."""
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0, 3, STEPS, dtype=torch.float64).view(-1, 1, 1)
    c = torch.randn(3, 1, 80, 5, generator=generator, dtype=torch.float64)
    series = c[0] + c[1] * torch.exp(t / 2) + c[2] * torch.sin(2 * t)
    series = series / series.square().mean((1, 2), keepdim=True).sqrt()
    sums, singles = [], []
    for feedback in (0.0, 1.0):
        table = fit(moments_of(series), one_group(5), PLAN, FLAT, Fit(2, 0.0, feedback))
        errors = missed(series, table, one_group(5))
        sums.append(float(sum(errors.values()).norm()))  # type: ignore[union-attr]
        singles.append(float(sum(error.square().sum() for error in errors.values())))
    assert sums[1] < 0.8 * sums[0]
    assert singles[1] > singles[0]


def test_weights_do_not_depend_on_the_unit_of_feature_or_latent() -> None:
    series, how = wandering(), Fit(3, 1e-4, 0.7)
    one = fit(moments_of(series), one_group(6), PLAN, FLAT, how)
    other = fit(moments_of(series * 1000), one_group(6), PLAN, [-5.0] * STEPS, how)
    for key, rows in one.rows.items():
        assert torch.allclose(rows, other.rows[key], rtol=1e-3, atol=1e-4)


def test_steps_without_response_get_no_feedback() -> None:
    how = Fit(3, 0.0, 1.0)
    found = fit(moments_of(wandering()), one_group(6), PLAN, [0.0] * STEPS, how)
    plain = fit(moments_of(wandering()), one_group(6), PLAN, FLAT, EXACT)
    assert all(torch.equal(rows, plain.rows[key]) for key, rows in found.rows.items())


def test_a_network_that_works_in_one_part_of_the_run() -> None:
    """Moments of steps 5 to 13 only: its first step is computed whatever the plan says, no anchor lies before it."""
    series, how = wandering(), Fit(3, 0.0, 0.5)
    table = fit(moments_of(series[5:], tuple(range(5, STEPS))), one_group(6), PLAN, FLAT, how)
    assert list(table.rows) == [
        *((s, (6, 5)) for s in (7, 8, 9)),
        *((s, (10, 6, 5)) for s in (11, 12)),
    ]
    for (s, anchors), rows in table.rows.items():
        assert len(rows[0]) == len(anchors)
        assert s not in PLAN.computed()


def test_nothing_skipped_is_nothing_fitted() -> None:
    table = fit(moments_of(wandering()), one_group(6), Plan.every(1, STEPS), FLAT, EXACT)
    assert (table.rows, table.groups, table.order) == ({}, 1, 2)


def test_joined_tables_keep_their_groups_in_order() -> None:
    moments = moments_of(wandering())
    one = fit(moments, torch.tensor([0, 1, 0, 1, 0, 1]), PLAN, FLAT, EXACT)
    two = fit(moments_of(wandering(seed=1)), torch.arange(6), PLAN, FLAT, EXACT)
    both = joined([one, two])
    assert (both.groups, both.order) == (8, 2)
    assert both.rows.keys() == one.rows.keys()
    found = both.weights([6.0, 2.0, 1.0], 8.0)
    assert found == [*one.weights([6.0, 2.0, 1.0], 8.0), *two.weights([6.0, 2.0, 1.0], 8.0)]


def test_anchors_it_was_not_fitted_for_are_reused() -> None:
    table = fit(moments_of(wandering()), torch.tensor([0, 1, 0, 1, 0, 1]), PLAN, FLAT, EXACT)
    reuse = [[1.0, 0.0], [1.0, 0.0]]
    assert table.weights([6.0, 2.0], 8.0) == reuse  # one of three is missing
    assert table.weights([7.0, 6.0], 8.0) == reuse  # a step computed out of turn
    assert table.weights([6.0], 8.0) == [[1.0], [1.0]]
    fitted = table.weights([6.0, 2.0, 1.0], 8.0)
    assert fitted != [[1.0, 0.0, 0.0]] * 2
    # Older anchors than it uses carry no weight.
    assert table.weights([6.0, 2.0, 1.0, 0.0], 8.0) == [[*row, 0.0] for row in fitted]
