"""Do the responses say how far the last latent moves with the network's output at each step?"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffaccel.response import responses
from tests import tiny


def flow_match(**times: Any) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting="mu" in times)
    scheduler.set_timesteps(**times)
    return scheduler


@pytest.mark.parametrize(
    "times",
    [
        {"num_inference_steps": 10},
        {"num_inference_steps": 7, "mu": 1.15},
        {"sigmas": [1.0, 0.9, 0.5, 0.2], "mu": 0.6},
        {"sigmas": [1.0, 0.75, 0.5, 0.25]},
    ],
)
def test_flow_matching_with_euler_steps_has_the_widths_of_the_steps(times: dict[str, Any]) -> None:
    scheduler = flow_match(**times)
    found = responses(scheduler)
    assert found == pytest.approx(scheduler.sigmas.diff().tolist(), rel=1e-4)
    assert sum(found) == pytest.approx(-float(scheduler.sigmas[0]), rel=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"steps_offset": 1, "clip_sample": False},
        {"clip_sample": True},
        {"set_alpha_to_one": False, "beta_schedule": "scaled_linear"},
        {"timestep_spacing": "trailing"},
    ],
)
def test_ddim_in_closed_form(config: dict[str, Any]) -> None:
    """x / sqrt(alpha) moves by the difference of sqrt((1 - alpha) / alpha): nothing that comes later changes that."""
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(10)
    alphas = [float(scheduler.alphas_cumprod[int(t)]) for t in scheduler.timesteps]
    width = 1000 // 10
    last = int(scheduler.timesteps[-1]) - width
    alphas.append(float(scheduler.alphas_cumprod[last] if last >= 0 else scheduler.final_alpha_cumprod))
    noise = [((1 - alpha) / alpha) ** 0.5 for alpha in alphas]
    expected = [alphas[-1] ** 0.5 * (after - before) for before, after in pairwise(noise)]
    assert responses(scheduler) == pytest.approx(expected, rel=1e-3)


def drive(scheduler: Any, start: Tensor, outputs: Tensor) -> Tensor:
    """The last latent of a run of `scheduler` itself."""
    fresh, generator = copy.deepcopy(scheduler), torch.Generator().manual_seed(3)
    sample = start
    for output, time in zip(outputs, fresh.timesteps, strict=True):
        fresh.scale_model_input(sample, time) if hasattr(fresh, "scale_model_input") else None
        takes_noise = isinstance(fresh, DDPMScheduler | EulerAncestralDiscreteScheduler)
        more = {"generator": generator} if takes_noise else {}
        sample = fresh.step(output, time, sample, return_dict=False, **more)[0]
    return sample.double()


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        FlowMatchHeunDiscreteScheduler(),
        DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
        DDPMScheduler(clip_sample=False),
        DPMSolverMultistepScheduler(),
        DPMSolverMultistepScheduler(use_karras_sigmas=True, solver_order=3),
        EulerDiscreteScheduler(),
        EulerAncestralDiscreteScheduler(),
        HeunDiscreteScheduler(),
        PNDMScheduler(skip_prk_steps=True),
        UniPCMultistepScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_outputs_move_the_last_latent_by_their_responses(scheduler: Any) -> None:
    """Two runs of the real sampler from one start, outputs unlike at all steps: sum_s c_s (output at s)."""
    scheduler.set_timesteps(6)
    found = torch.tensor(responses(scheduler), dtype=torch.float64)
    assert len(found) == len(scheduler.timesteps)
    start = torch.randn(1, 4, 3, 3)
    outputs = torch.randn(2, len(found), 1, 4, 3, 3)
    moved = drive(scheduler, start, outputs[0]) - drive(scheduler, start, outputs[1])
    expected = torch.einsum("s,s...->...", found, (outputs[0] - outputs[1]).double())
    assert (moved - expected).abs().max() <= 2e-3 * expected.abs().max()


def test_answers_of_a_network_take_back_what_a_sampler_of_noise_magnifies() -> None:
    """With x' = x / sqrt(alpha) and r = sqrt((1 - alpha) / alpha), the best network for data of unit variance makes
    dx'/dr = x' r / (1 + r^2), so x' grows with sqrt(1 + r^2): an error at r ends up by that much smaller."""
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(500)
    alphas = scheduler.alphas_cumprod[scheduler.timesteps].double()
    r = ((1 - alphas) / alphas).sqrt()
    last = r[-1]
    expected = r.diff() * ((1 + last**2) / (1 + r[1:] ** 2)).sqrt() * alphas[-1].sqrt()
    found = torch.tensor(responses(scheduler, answered=True)[:-1], dtype=torch.float64)
    assert (found / expected - 1).abs().max() < 0.02
    alone = torch.tensor(responses(scheduler)[:-1], dtype=torch.float64)
    assert (alone / expected).abs().max() > 10


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=False),
        DDPMScheduler(clip_sample=False),
        DPMSolverMultistepScheduler(),
        EulerDiscreteScheduler(),
        PNDMScheduler(skip_prk_steps=True),
        UniPCMultistepScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_an_answered_output_moves_the_last_latent_by_its_response(scheduler: Any) -> None:
    """The sampler itself, with the best network for data of unit variance, and one of its outputs changed."""
    scheduler.set_timesteps(6)

    def last(changed: int | None) -> Tensor:
        fresh, generator = copy.deepcopy(scheduler), torch.Generator().manual_seed(3)
        sample = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(4))
        for place, time in enumerate(fresh.timesteps):
            seen = fresh.scale_model_input(sample, time)
            share = (1 - float(fresh.alphas_cumprod[int(time)])) ** 0.5
            output = share * seen + (1.0 if place == changed else 0.0)
            more = {"generator": generator} if isinstance(fresh, DDPMScheduler) else {}
            sample = fresh.step(output, time, sample, return_dict=False, **more)[0]
        return sample.double()

    still = last(None)
    for place, expected in enumerate(responses(scheduler, answered=True)):
        moved = last(place) - still
        assert (moved - expected).abs().max() <= 5e-3 * max(abs(expected), 0.1), place


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(shift=3.0), DDIMScheduler(prediction_type="v_prediction")]
)
def test_networks_that_predict_velocities_do_not_answer(scheduler: Any) -> None:
    scheduler.set_timesteps(8)
    assert responses(scheduler, answered=True) == responses(scheduler)


def test_clipping_does_not_show() -> None:
    """Schedulers that clip what they predict are taken where they do not."""
    found = []
    for clip in (False, True):
        scheduler = DDIMScheduler(clip_sample=clip, clip_sample_range=1.0)
        scheduler.set_timesteps(20)
        found.append(responses(scheduler))
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_the_scheduler_is_not_touched() -> None:
    for pipe, run in ((tiny.flux(), tiny.run_flux), (tiny.dit(), tiny.run_dit)):
        expected = run(pipe, steps=6)
        before = dict(vars(pipe.scheduler))
        copies = copy.deepcopy(before)
        found = responses(pipe.scheduler)
        assert len(found) == 6
        assert vars(pipe.scheduler).keys() == before.keys()
        for name, value in vars(pipe.scheduler).items():
            assert value is before[name]
            same = torch.equal(value, copies[name]) if isinstance(value, Tensor) else value == copies[name]
            assert same, name
        assert torch.equal(run(pipe, steps=6), expected)
        # Half-way through a run or after it, it is the same run.
        pipe.scheduler.set_timesteps(6, **({"mu": 0.9} if "flux" in type(pipe).__name__.lower() else {}))
        first = responses(pipe.scheduler)
        pipe.scheduler.step(torch.randn(1, 4, 2, 2), pipe.scheduler.timesteps[0], torch.randn(1, 4, 2, 2))
        assert responses(pipe.scheduler) == first


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
def test_a_scheduler_without_timesteps_is_refused(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__} has no timesteps: run the pipeline once"):
        responses(kind())
