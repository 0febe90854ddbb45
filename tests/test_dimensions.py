"""Does every feature dimension get the weights of its own group?"""

from __future__ import annotations

import pytest
import torch

from diffaccel.dimensions import ByDimension
from diffaccel.feature import Feature, forecast
from diffaccel.fitting import Table
from diffaccel.forecast import Grouped, Hold, Newton, Solver, Taylor

TIMES, T = [8.0, 5.0, 2.0], 10.0


def test_a_column_is_the_row_of_its_group() -> None:
    rules = (Taylor(1), Hold(), Solver("rk2"))
    by_dimension = ByDimension(Grouped(rules), {0: torch.tensor([2, 0, 0, 1]), 3: torch.tensor([1])})
    found = by_dimension.weights(TIMES, T)
    assert found.keys() == {0, 3}
    assert (found[0].shape, found[0].dtype) == ((3, 4), torch.float32)
    for d, group in enumerate([2, 0, 0, 1]):
        own = rules[group].weights(TIMES[: rules[group].order + 1], T)
        assert found[0][:, d].tolist() == pytest.approx([*own, 0.0, 0.0][:3])
    assert found[3] == (1.0, 0.0, 0.0)  # all dimensions alike
    assert by_dimension.order == 2


@pytest.mark.parametrize("anchors", [1, 2, 3])
def test_one_row_of_weights_per_anchor_there_is(anchors: int) -> None:
    by_dimension = ByDimension(Grouped((Newton(2), Hold())), {0: torch.tensor([0, 1, 0])})
    found = by_dimension.weights(TIMES[:anchors], T)[0]
    assert found.shape == (anchors, 3)
    assert torch.allclose(found.sum(0), torch.ones(3))


def test_dimensions_of_one_output_are_forecast_apart() -> None:
    """Two leaves with groups of their own: one dimension goes on straight, one is held, one follows a parabola."""
    line, square = (lambda t: 3 * t - 1), (lambda t: t * t)
    rule = Grouped((Newton(1), Hold(), Newton(2)))
    by_dimension = ByDimension(rule, {0: torch.tensor([0, 1]), 1: torch.tensor([2, 0])})

    def output(t: float) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([[line(t), line(t)]]), torch.tensor([[square(t), line(t)]])

    left, right = forecast([Feature(output(t)) for t in TIMES], by_dimension.weights(TIMES, T))
    assert left.tolist() == [pytest.approx([line(T), line(TIMES[0])])]
    assert right.tolist() == [pytest.approx([square(T), line(T)])]


def test_a_table_of_fitted_weights_is_such_a_rule() -> None:
    table = Table(1, 2, {(10, (8, 5)): torch.tensor([[1.5, -0.5], [1.0, 0.0]], dtype=torch.float64)})
    found = ByDimension(table, {0: torch.tensor([1, 0, 1])}).weights([8.0, 5.0], 10.0)[0]
    assert found.tolist() == [[1.0, 1.5, 1.0], [0.0, -0.5, 0.0]]
