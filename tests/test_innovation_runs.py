"""What innovation promises while it runs: forecasts of the regression, whole-network skips, and nothing left behind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffaccel import Plan, accelerate_pipeline
from diffaccel.innovation import best_plan, moments
from diffaccel.pipelines import bundled, image
from tests.innovation_reference import (
    OBSERVATIONS,
    STEPS,
    Following,
    act,
    explicit_run,
    flux_statistics,
    network,
    pairs,
    robot,
)
from tests.policies import SCHEDULE
from tests.test_contract import count_forwards, same, traces
from tests.test_policy_pipeline import policy
from tests.tiny import flux, run_flux


def accelerated(pipe: Any, **options: Any) -> Any:
    return accelerate_pipeline(pipe, "innovation", **{"calibration": OBSERVATIONS, "computed": 4, **options})


def far(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver"])
@pytest.mark.parametrize("computed", [1, 3])
def test_an_output_that_follows_from_the_sample_is_forecast_exactly(name: str, computed: int) -> None:
    pipe = robot(name, Following())
    full = act(pipe)
    accelerated(pipe, computed=computed)
    assert far(act(pipe), full) < 1e-3
    if name == "ddpm":  # the noise that is added cannot be foreseen
        pipe.acceleration.remove()
        accelerate_pipeline(pipe, "fitted", level="output", computed=3, calibration=OBSERVATIONS)
        assert far(act(pipe), full) > 0.05


@pytest.mark.parametrize("name", ["ddpm", "ddim", "heun"])
def test_statistics_are_those_of_runs_by_hand(name: str) -> None:
    """18 observations make a run of 16 and one of 2: all samples count the same."""
    pipe = robot(name)
    found = accelerated(pipe, seed=5).acceleration.method.statistics
    pipe.acceleration.remove()
    outputs, samples = pairs(pipe, range(18), seed=5)
    calls = 2 * STEPS - 1 if name == "heun" else STEPS
    assert found.steps == calls == len(outputs)
    assert found.samples == 18
    np.testing.assert_allclose(found.gram, moments(outputs, samples), rtol=1e-4, atol=1e-6)
    assert act(accelerated(pipe, calibration=found)).isfinite().all()  # and they are known to be of this pipeline


@pytest.mark.parametrize("anchors", [1, 2])
@pytest.mark.parametrize("schedule", ["best", "even"])
def test_forecasts_are_those_of_a_loop_by_hand(anchors: int, schedule: str) -> None:
    pipe = accelerated(robot(), anchors=anchors, schedule=schedule, ridge=0.0)
    first, second = act(pipe), act(pipe)
    computed = pipe.acceleration.plan.computed()
    known = pipe.acceleration.method.statistics
    assert computed == (best_plan(known, 4, 0.0) if schedule == "best" else [0, 3, 6, 9])
    assert best_plan(known, 4, 0.0) != [0, 3, 6, 9]
    pipe.acceleration.remove()
    assert torch.equal(first, second)
    assert far(first, explicit_run(pipe, known.gram, computed, anchors)) < 1e-3


def test_skipped_steps_run_nothing_and_the_report_counts_them() -> None:
    pipe = robot()
    calls: Counter[str] = Counter()
    for name, module in pipe.denoiser.named_modules():
        if name and not list(module.children()):
            count_forwards(module, name, calls)
    act(pipe)
    uncached = Counter(calls)
    calls.clear()
    accelerated(pipe)
    calls.clear()
    assert act(pipe).isfinite().all()
    assert all(STEPS * calls[name] == 4 * uncached[name] for name in uncached)
    report = pipe.acceleration.report()
    assert [(site.name, site.computed, site.skipped) for site in report.sites] == [
        ("head", {"call 0": 4}, {"call 0": 8})
    ]
    assert (report.bound, len(report.seconds["skipped"])) == (3.0, 8)


def test_all_steps_computed_is_bit_identical() -> None:
    pipe = robot()
    full = act(pipe)
    assert torch.equal(act(accelerated(pipe, computed=STEPS)), full)


def test_batch_mates_do_not_influence_each_other() -> None:
    pipe = accelerated(robot())
    singles = torch.cat([act(pipe, pick=row) for row in range(3)])
    assert far(singles, act(pipe)) < 1e-4


def test_removal_leaves_no_trace() -> None:
    pipe = robot()
    full, before = act(pipe), traces(pipe, pipe.denoiser)
    act(accelerated(pipe))
    pipe.acceleration.remove()
    assert same(before, traces(pipe, pipe.denoiser))
    assert torch.equal(act(pipe), full)


def test_a_failed_run_leaves_the_next_one_right() -> None:
    pipe = accelerated(robot())
    expected, calls = act(pipe), iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt

    hook = pipe.denoiser.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        act(pipe, seed=1)
    hook.remove()
    assert torch.equal(act(pipe), expected)


class InPlace(DDIMScheduler):
    """Writes the next sample into the memory of the last."""

    def step(self, output: Tensor, t: Any, sample: Tensor, **more: Any) -> Any:
        return (sample.copy_(super().step(output, t, sample, **more)[0]),)


def test_loops_that_write_into_their_sample_get_the_same_result() -> None:
    results = []
    for kind in (DDIMScheduler, InPlace):
        pipe = accelerated(policy(network(), kind(**SCHEDULE, clip_sample=False), num_inference_steps=STEPS))
        results.append((pipe.acceleration.method.statistics.gram, act(pipe)))
    assert np.array_equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks(dtype: torch.dtype) -> None:
    """Weights are fitted and applied in more digits than the network has."""
    pipe = robot(made=Following().to(dtype))
    full = act(pipe)
    outputs: list[torch.dtype] = []
    accelerated(pipe)
    pipe.denoiser.register_forward_hook(lambda *given: outputs.append(given[2].dtype))
    assert 0 < far(act(pipe), full) < 0.02
    assert outputs == [dtype] * STEPS


def test_forecasts_are_worked_out_in_more_digits_than_a_half_precision_network_has() -> None:
    pipe = accelerated(robot("ddim", Following().to(torch.bfloat16)), anchors=2)
    found, computed = act(pipe), pipe.acceleration.plan.computed()
    gram = pipe.acceleration.method.statistics.gram
    pipe.acceleration.remove()
    assert float((found != explicit_run(pipe, gram, computed, 2)).float().mean()) < 0.1  # half of them in bfloat16


@pytest.mark.parametrize("guidance", [False, True])
def test_pictures_with_and_without_guidance(guidance: bool) -> None:
    """Guidance branches share regressions and have anchors of their own."""
    pipe = flux()
    known = flux_statistics(pipe, guidance)
    assert known.samples == (4 if guidance else 2)
    full, before = run_flux(pipe, guidance=guidance), traces(pipe, pipe.transformer)
    accelerated(pipe, calibration=known, computed=8)
    assert torch.equal(run_flux(pipe, guidance=guidance), full)
    pipe.acceleration.remove()
    accelerated(pipe, calibration=known, computed=5)
    found = run_flux(pipe, guidance=guidance)
    assert 0 < far(found, full) < 1
    report = pipe.acceleration.report()
    assert [sum(counts) for counts in zip(*(site.computed.values() for site in report.sites), strict=True)] == [5] * (
        1 + guidance
    )
    pipe.acceleration.remove()
    assert same(before, traces(pipe, pipe.transformer))


def test_the_bundled_policy_comes_nearer_than_reuse_with_twice_the_steps() -> None:
    pipe, seen = bundled.policy("pick-place"), bundled.policy_observations("pick-place")

    def trajectories() -> Tensor:
        found: Tensor = pipe(seen[::4], generator=[torch.Generator().manual_seed(i) for i in range(16)]).trajectory
        return found * pipe.normalizer.action_scale

    full = trajectories()
    errors = []
    for method, options in (("innovation", {"computed": 10, "calibration": seen[1::8]}), ("uniform", {"updates": 20})):
        accelerate_pipeline(pipe, method, **options)
        errors.append((trajectories() - full).pow(2).mean((1, 2)).sqrt().median())
        pipe.acceleration.remove()
    assert errors[0] < errors[1] / 2


def test_prompts_teach_the_bundled_pictures_better_than_reuse() -> None:
    pipe, asked = image.load(), bundled.prompts("held-out")[:2]
    full = image.pictures(pipe, asked, [1, 2])
    accelerate_pipeline(pipe, "innovation", computed=7, calibration=bundled.prompts("train")[:3])
    errors = [(image.pictures(pipe, asked, [1, 2]) - full).pow(2).mean()]
    (site,) = pipe.acceleration.report().sites
    assert set(site.computed.values()) == {7}
    pipe.acceleration.remove()
    even = Plan.at([4 * i for i in range(7)], 28)
    accelerate_pipeline(pipe, "taylorseer", level="output", order=0, schedule=even)
    errors.append((image.pictures(pipe, asked, [1, 2]) - full).pow(2).mean())
    assert errors[0] < errors[1]
