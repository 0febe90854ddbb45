"""Which schedulers does Morse serve, is it invisible under each where Dash runs at all steps, what does it refuse?"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)

from diffaccel.morse.schedulers import injects_noise
from tests import tiny
from tests.morse_toys import Dot, Loop, of_oracle, toy_dash, with_dot

SERVED = {
    "ddim": DDIMScheduler(),
    "ddim v": DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    "ddpm": DDPMScheduler(),
    "euler": EulerDiscreteScheduler(),
    "euler karras": EulerDiscreteScheduler(use_karras_sigmas=True),
    "euler ancestral": EulerAncestralDiscreteScheduler(),
    "dpm++ 2m": DPMSolverMultistepScheduler(),
    "dpm++ 2m sde": DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "unipc": UniPCMultistepScheduler(),
    "deis": DEISMultistepScheduler(),
    "lcm": LCMScheduler(),
}


def stable_diffusion(scheduler: Any) -> Any:
    pipe = tiny.stable_diffusion()
    pipe.scheduler = scheduler
    return pipe


def dot_for(scheduler: Any, **config: Any) -> Dot:
    return Dot(of_oracle, residual_space="sample" if injects_noise(scheduler) else "epsilon", **config)


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("name", SERVED)
def test_dash_at_all_steps_is_bit_identical(name: str, guidance: bool, caplog: pytest.LogCaptureFixture) -> None:
    pipe = stable_diffusion(SERVED[name])
    run = {"batch": 2, "steps": 5, "guidance": guidance}
    expected = tiny.run_unet(pipe, generator=torch.Generator().manual_seed(1), **run)
    dot = with_dot(pipe, dot_for(pipe.scheduler), dots_per_dash=0)
    with caplog.at_level(logging.WARNING, "diffaccel"):
        found = tiny.run_unet(pipe, generator=torch.Generator().manual_seed(1), **run)
    assert torch.equal(found, expected)
    assert not dot.asked
    assert any("runs Dash at all 5 steps" in record.message for record in caplog.records)


@pytest.mark.parametrize("guidance", [False, True])
def test_dash_at_all_steps_of_flow_matching_is_bit_identical(guidance: bool) -> None:
    pipe = tiny.flux()
    expected = tiny.run_flux(pipe, batch=2, guidance=guidance)
    with_dot(pipe, dots_per_dash=0)
    assert torch.equal(tiny.run_flux(pipe, batch=2, guidance=guidance), expected)


@pytest.mark.parametrize("name", SERVED)
def test_every_served_scheduler_runs_with_dots(name: str) -> None:
    pipe = stable_diffusion(SERVED[name])
    dot = with_dot(pipe, dot_for(pipe.scheduler))
    run = {"batch": 2, "steps": 6, "guidance": True}
    found = tiny.run_unet(pipe, generator=torch.Generator().manual_seed(1), **run)
    assert found.isfinite().all()
    assert torch.equal(tiny.run_unet(pipe, generator=torch.Generator().manual_seed(1), **run), found)
    report = pipe.acceleration.report()
    assert (report.dash, report.dot, report.forced) == (2, 4, {})
    assert len(dot.asked) == 8


def test_x0_is_what_is_kept_where_noise_comes_in() -> None:
    """A kept epsilon lets noise that was added since through to x0: up to |x| = 45 on a toy."""
    sizes = {}
    for scheduler, space in (
        (DDPMScheduler(clip_sample=False), "sample"),
        (DDIMScheduler(clip_sample=False), "epsilon"),
    ):
        pipe = Loop(toy_dash(), scheduler)
        with_dot(pipe, Dot(residual_space=space))
        torch.manual_seed(0)
        sizes[space] = pipe(torch.randn(64, 4), steps=21).abs().max()
    assert sizes["sample"] < 2 * sizes["epsilon"]


@pytest.mark.parametrize(
    ("scheduler", "space", "said"),
    [
        (HeunDiscreteScheduler(), "epsilon", "asks the network 2 times a step.*DDIMScheduler"),
        (KDPM2DiscreteScheduler(), "epsilon", "asks the network 2 times a step"),
        (PNDMScheduler(skip_prk_steps=True), "epsilon", "one time twice.*DDIMScheduler, EulerDiscreteScheduler"),
        (DDPMScheduler(), "epsilon", "adds noise.*a Dot of residual_space='sample'"),
        (EulerAncestralDiscreteScheduler(), "epsilon", "adds noise"),
        (LCMScheduler(), "epsilon", "adds noise"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "epsilon", "adds noise"),
        (DDIMScheduler(), "sample", "DDIMScheduler adds none.*residual_space='epsilon'"),
        (EulerDiscreteScheduler(), "sample", "adds none"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "config") else "",
)
def test_schedulers_that_a_dot_cannot_serve(scheduler: Any, space: str, said: str) -> None:
    """Refused before anything is attached, and also where one comes in between two runs."""
    pipe = stable_diffusion(scheduler)
    with pytest.raises(ValueError, match=said):
        with_dot(pipe, Dot(residual_space=space))
    assert "forward" not in vars(pipe.unet)
    assert "acceleration" not in vars(pipe)
    pipe.scheduler = DDIMScheduler() if space == "epsilon" else DDPMScheduler()
    with_dot(pipe, Dot(residual_space=space))
    tiny.run_unet(pipe, steps=6)
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=said):
        tiny.run_unet(pipe, steps=6)
    pipe.scheduler = DDIMScheduler() if space == "epsilon" else DDPMScheduler()
    tiny.run_unet(pipe, steps=6)
    assert pipe.acceleration.report().dot == 4


@pytest.mark.parametrize(
    ("scheduler", "space", "said"),
    [
        (FlowMatchHeunDiscreteScheduler(), "epsilon", "asks the network 2 times"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "epsilon", "adds noise at every step"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "sample", "velocity is kept"),
    ],
)
def test_flow_matching_that_a_dot_cannot_serve(scheduler: Any, space: str, said: str) -> None:
    pipe = tiny.flux()
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=said):
        with_dot(pipe, Dot(residual_space=space))


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler])
def test_schedulers_that_remember_are_warned_of(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "diffaccel"):
        with_dot(stable_diffusion(kind()), Dot(scheduler=kind.__name__))
        with_dot(stable_diffusion(DDIMScheduler()))
        with_dot(stable_diffusion(kind(solver_order=1)))
        assert not caplog.records
        with_dot(stable_diffusion(kind()), Dot(scheduler="DDIMScheduler"))
    [record] = caplog.records
    assert kind.__name__ in record.message
    assert "not trained with it" in record.message


def test_the_plan_is_for_the_evaluations_of_the_run() -> None:
    """Image to image starts in the middle: half of 24 steps have the plan of 12."""
    made = tiny.stable_diffusion()
    pipe = StableDiffusionImg2ImgPipeline(**made.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    text = torch.randn(1, tiny.TEXT_TOKENS, tiny.TEXT_WIDTH)

    def run(steps: int) -> None:
        picture = torch.zeros(1, 3, 8, 8)
        pipe(
            prompt_embeds=text,
            image=picture,
            strength=0.5,
            guidance_scale=1.0,
            num_inference_steps=steps,
            output_type="latent",
        )

    with_dot(pipe, lsd=6.0, dots_per_dash=None, ratio=5.0)
    wanted = pipe.acceleration.num_inference_steps
    run(2 * wanted)
    report = pipe.acceleration.report()
    assert report.plan is not None
    assert (report.plan.steps, report.dash + report.dot) == (wanted, wanted)
    assert report.lsd_planned <= 6
    with pytest.raises(ValueError, match=f"no run of 5 steps costs 6 LSD.*num_inference_steps={wanted}.*strength"):
        run(10)
