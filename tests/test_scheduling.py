"""Is the plan the best there is, and is it what Fitted computes?"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from diffaccel.methods.fitted import Fitted
from diffaccel.moments import Moments
from diffaccel.pipelines import bundled
from diffaccel.plan import Plan
from diffaccel.scheduling import best_plan
from diffaccel.trace import Trace

STEPS = 8


def moments(series: Tensor) -> Moments:
    return Moments.of(series, leaf=0, axis=-1, steps=tuple(range(len(series))))


def walk(seed: int) -> Tensor:
    """A feature (steps, tokens, dims) that wanders, at a pace that changes."""
    generator = torch.Generator().manual_seed(seed)
    pace = torch.rand(STEPS, 1, 1, generator=generator) ** 3
    return (pace * torch.randn(STEPS, 40, 3, generator=generator)).cumsum(0).double() + 2


def cost(series: Tensor, response: list[float], computed: tuple[int, ...]) -> float:
    """What the gaps of a plan leave, worked out on the feature itself."""
    spread = series.square().mean((1, 2)).sqrt()
    scale = torch.tensor(response, dtype=torch.float64) / spread
    moved = float((series - series.mean(0)).square().mean())
    total = 0.0
    for place, newest in enumerate(computed):
        end = computed[place + 1] if place + 1 < len(computed) else STEPS
        gap = range(newest + 1, end)
        left = sum((scale[s] * (series[s] - series[newest]) for s in gap), torch.zeros_like(series[0])).flatten()
        # Tokens' means over the run are of no use to a forecast whose weights sum to 1, and cancel here too.
        if place:
            x = (series[computed[place - 1]] - series[newest]).flatten()
            left = left - x * (x @ left) / (x @ x + 1e-5 * moved * len(x))
        total += float(left.square().mean())
    return total


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_other_plan_leaves_less(seed: int, count: int) -> None:
    series = walk(seed)
    response = [-0.1 * (1 + s % 3) for s in range(STEPS)]
    found = tuple(best_plan([moments(series)], response, count).computed())
    every = {(0, *rest): cost(series, response, (0, *rest)) for rest in combinations(range(1, STEPS), count - 1)}
    assert len(found) == count
    assert every[found] == pytest.approx(min(every.values()), rel=1e-2, abs=1e-6)


def test_steps_in_which_nothing_moves_are_not_computed() -> None:
    series = walk(0)
    series[5:] = series[5]
    assert max(best_plan([moments(series)], [1.0] * STEPS, 4).computed()) <= 5


def test_steps_the_sampler_makes_nothing_of_are_not_computed() -> None:
    response = [1.0] * 4 + [0.0] * 4
    assert max(best_plan([moments(walk(1))], response, 4).computed()) < 4


def test_features_count_together() -> None:
    early, late = walk(2), walk(3)
    early[4:], late[:4] = early[4], late[3]
    response = [1.0] * STEPS
    both = best_plan([moments(early), moments(late)], response, 4).computed()
    assert min(both[1:]) < 4 < max(both)


@pytest.mark.parametrize("count", [1, STEPS])
def test_nothing_to_choose(count: int) -> None:
    assert best_plan([moments(walk(0))], [1.0] * STEPS, count) == Plan.at(range(count), STEPS)


@pytest.mark.parametrize("count", [0, STEPS + 1])
def test_a_number_that_cannot_be_computed_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"of 8 steps 1 to 8 can be computed, got {count}"):
        best_plan([moments(walk(0))], [1.0] * STEPS, count)


@pytest.fixture(scope="module")
def calibration() -> Any:
    from diffaccel.calibration import Calibration

    return Calibration({28: Trace.load(bundled.path() / "calibration-model-28.safetensors")})


def test_fitted_computes_as_many_steps_as_the_even_schedule_would(calibration: Any) -> None:
    for interval in (3, 4, 6):
        best = Fitted(interval=interval, calibration=calibration).plan([], 28)
        even = Fitted(interval=interval, schedule="even", calibration=calibration).plan([], 28)
        assert even == Plan.every(interval, 28, 3, last=True)
        assert len(best.computed()) == len(even.computed())
        assert best != even
    assert len(Fitted(computed=7, calibration=calibration).plan([], 28).computed()) == 7
    own = Plan.at([0, 9], 28)
    assert Fitted(schedule=own, calibration=calibration).plan([], 28) == own
    assert Fitted(interval=5).plan([], 28) == Plan.every(5, 28, 3, last=True), "nothing is known yet"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "worst"}, "schedule must be one of best, even or a Plan, got 'worst'"),
        ({"computed": 0}, "computed must be a whole number of at least 1"),
        ({"computed": 7, "schedule": "even"}, "an even schedule is told by its interval"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fitted(**options)
