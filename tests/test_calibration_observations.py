"""Calibrations made from a policy's observations: are they the traces that would be recorded by hand?"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffaccel import accelerate_pipeline
from diffaccel.calibration import record, worked_out
from diffaccel.calibration_runs import default_steps, runs, stacked
from diffaccel.recording import recording
from tests.innovation_reference import OBSERVATIONS, STEPS, act, generators, robot
from tests.policies import FOREIGN, observe, query
from tests.test_contract import same, traces

methods = pytest.mark.parametrize("method", ["hyca", "fitted"])


def by_hand(level: str, batch: int = 16, seed: int = 0) -> Any:
    pipe = robot("ddim")
    with recording(pipe, level) as recorder:
        for start in range(0, len(OBSERVATIONS), batch):
            part = OBSERVATIONS[start : start + batch]
            pipe(part, generator=generators(range(seed + start, seed + start + len(part))))
    return worked_out(recorder.trace(), pipe.scheduler)


@pytest.mark.parametrize(("level", "batch", "seed"), [("model", 16, 0), ("output", 16, 0), ("model", 5, 30)])
def test_a_trace_of_observations_is_the_one_recorded_by_hand(level: str, batch: int, seed: int) -> None:
    pipe = robot("ddim")
    before = traces(pipe, pipe.denoiser)
    found, expected = record(pipe, OBSERVATIONS, level=level, batch=batch, seed=seed), by_hand(level, batch, seed)
    assert same(before, traces(pipe, pipe.denoiser))
    assert (found.steps, found.runs) == (STEPS, -(-len(OBSERVATIONS) // batch))
    assert found.notes == expected.notes
    ((_, one),) = found.networks["denoiser"].items()
    ((_, other),) = expected.networks["denoiser"].items()
    assert torch.equal(one[0].centred, other[0].centred)


@methods
@pytest.mark.parametrize("level", ["model", "output"])
def test_methods_learn_from_observations_what_they_learn_from_the_trace(method: str, level: str) -> None:
    results = []
    for calibration in (OBSERVATIONS, list(OBSERVATIONS), by_hand(level)):
        pipe = accelerate_pipeline(robot("ddim"), method, interval=3, level=level, calibration=calibration)
        results.append(act(pipe))
        assert 0 < len(pipe.acceleration.plan.computed()) < STEPS
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@methods
@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "calibration is empty: give at least one observation"),
        (["pick the cup"], "a policy learns from observations, shape .* not from prompts"),
        (OBSERVATIONS[..., :-1], "observations must have shape"),
        (OBSERVATIONS / 0, "not finite"),
        ([OBSERVATIONS[0], OBSERVATIONS[1, :1]], "observations must be of one shape"),
        (None, r"there is no calibration for this PolicyPipeline.* or observations"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_and_changes_nothing(method: str, calibration: Any, message: str) -> None:
    pipe = robot("ddim")
    full, before = act(pipe), traces(pipe, pipe.denoiser)
    with pytest.raises(ValueError, match=message):
        accelerate_pipeline(pipe, method, calibration=calibration)
    assert same(before, traces(pipe, pipe.denoiser))
    assert torch.equal(act(pipe), full)


@methods
def test_an_accelerated_policy_is_no_source_and_says_so(method: str) -> None:
    pipe = accelerate_pipeline(robot("ddim"), "taylorseer", interval=3)
    with pytest.raises(ValueError, match=r"already accelerated by TaylorSeer.*remove\(\)"):
        accelerate_pipeline(pipe, method, calibration=OBSERVATIONS)


@methods
@pytest.mark.parametrize("name", ["decoder", "dit"])
def test_policies_of_other_projects_are_refused_as_they_are(method: str, name: str) -> None:
    made = FOREIGN[name][0]()
    expected = query(made)
    with pytest.raises(TypeError, match=rf"{type(made).__name__} runs a sampling loop of its own.*PolicyPipeline"):
        accelerate_pipeline(made, method, calibration=observe(made)[0])
    assert torch.equal(query(made), expected)


def test_one_observation_and_a_list_of_them_make_a_batch() -> None:
    assert torch.equal(stacked(OBSERVATIONS[0]), OBSERVATIONS[:1])
    assert torch.equal(stacked(OBSERVATIONS[0].numpy()), OBSERVATIONS[:1])
    assert torch.equal(stacked([OBSERVATIONS[0], OBSERVATIONS[1:3]]), OBSERVATIONS[:3])


def test_runs_are_made_with_a_noise_of_their_own_for_each_observation() -> None:
    pipe = robot("ddpm")
    assert default_steps(pipe) == STEPS
    made = runs(pipe, OBSERVATIONS[:5], batch=2, seed=9)
    assert [run.samples for run in made] == [2, 2, 1]
    found = torch.cat([run.make().trajectory for run in made])
    expected = pipe(OBSERVATIONS[:5], generator=generators(range(9, 14))).trajectory
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
