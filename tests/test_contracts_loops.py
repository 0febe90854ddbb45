"""Loops of all kinds: two networks in turn, runs that begin late, control that ends early, solvers, two schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UniPCMultistepScheduler,
    UVit2DModel,
    VQModel,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

from diffaccel import Plan, accelerate_pipeline
from diffaccel.calibration import Calibration, worked_out
from diffaccel.denoisers import clocks, denoisers
from diffaccel.recording import recording
from tests import tiny


def wan(two: bool = True) -> WanPipeline:
    """Wan 2.2 at toy size: one network for high noise, another for low noise."""

    def network(seed: int) -> WanTransformer3DModel:
        made = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=24,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
        )
        return tiny.randomize(made, seed)

    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=network(0),
        transformer_2=network(1) if two else None,
        boundary_ratio=0.8 if two else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_wan(pipe: WanPipeline, steps: int = 14, guidance: bool = True) -> Tensor:
    """Latents of a toy run of five frames."""
    generator = torch.Generator().manual_seed(3)
    text = {name: torch.randn(1, 6, 24, generator=generator) for name in ("prompt_embeds", "negative_prompt_embeds")}
    frames: Tensor = pipe(
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=steps,
        guidance_scale=4.0 if guidance else 1.0,
        latents=torch.randn(1, 4, 2, 4, 4, generator=generator),
        output_type="latent",
        **text,
    ).frames
    return frames


@pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guided"])
def test_two_networks_in_turn(guidance: bool) -> None:
    """Wan 2.2: each network has a history of its own, the second one begins with a warm-up where it enters."""
    pipe = wan()
    plain = run_wan(pipe, guidance=guidance)
    calls: dict[str, list[Any]] = {"transformer": [], "transformer_2": []}
    for name, seen in calls.items():
        getattr(pipe, name).register_forward_hook(lambda *_, seen=seen: seen.append(None))
    accelerate_pipeline(pipe, interval=4, order=1, warmup=2)
    result = run_wan(pipe, guidance=guidance)
    assert not torch.equal(result, plain)
    assert result.isfinite().all()
    first, second = (pipe.acceleration.report(name).sites[0] for name in pipe.acceleration.networks)
    high = len(calls["transformer"]) // (1 + guidance)
    planned = Plan.every(4, 14, 2).computed()
    assert 4 <= high <= 10
    assert set(first.computed.values()) == {sum(step < high for step in planned)}
    assert set(second.computed.values()) == {len({step for step in planned if step >= high} | {high, high + 1})}
    pipe.acceleration.remove()
    assert torch.equal(run_wan(pipe, guidance=guidance), plain)


def test_two_networks_under_a_full_plan_are_bit_identical() -> None:
    pipe = wan()
    plain = run_wan(pipe)
    assert torch.equal(run_wan(accelerate_pipeline(pipe, interval=1)), plain)


@pytest.mark.parametrize("method", ["hyca", "fitted"])
def test_two_networks_learn_from_one_recording(method: str) -> None:
    pipe = wan()
    plain = run_wan(pipe, steps=28)
    with recording(pipe) as recorder:
        assert torch.equal(run_wan(pipe, steps=28), plain)
    learnt = Calibration({28: worked_out(recorder.trace(), pipe.scheduler)})
    accelerate_pipeline(pipe, method, interval=4, calibration=learnt)
    result = run_wan(pipe, steps=28)
    assert result.isfinite().all()
    assert all(sum(pipe.acceleration.report(name).sites[0].skipped.values()) for name in pipe.acceleration.networks)
    pipe.acceleration.remove()
    assert torch.equal(run_wan(pipe, steps=28), plain)


PICTURE = {"image": torch.rand(1, 3, 8, 8), "strength": 0.6, "num_inference_steps": 10, "output_type": "latent"}
TEXT = {"prompt_embeds": torch.randn(1, 6, 24), "guidance_scale": 1.0}


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, UniPCMultistepScheduler])
def test_strength_makes_a_shorter_run(kind: type[Any], scheduler: type[Any]) -> None:
    """Ten steps at strength .6 are six, and all of them is what a full plan computes, bit by bit."""
    base = tiny.stable_diffusion()
    pipe = kind.from_pipe(base)
    pipe.scheduler = scheduler()
    pipe.set_progress_bar_config(disable=True)
    inputs = PICTURE | TEXT | ({"mask_image": torch.ones(1, 1, 8, 8)} if "Inpaint" in kind.__name__ else {})

    def run() -> Tensor:
        return pipe(**inputs, generator=torch.Generator().manual_seed(0)).images

    plain = run()
    accelerate_pipeline(pipe, interval=3, warmup=2)
    run()
    assert pipe.acceleration.plan == Plan.every(3, 6, 2)
    pipe.acceleration.remove()
    accelerate_pipeline(pipe, interval=1)
    assert torch.equal(run(), plain)


def test_control_that_ends_early() -> None:
    """Diffusers then hands over zeros of the same shapes: the history goes on."""
    base = tiny.stable_diffusion()
    control = ControlNetModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(8, 8),
    )
    pipe = StableDiffusionControlNetPipeline.from_pipe(base, controlnet=tiny.randomize(control))
    pipe.set_progress_bar_config(disable=True)
    inputs: dict[str, Any] = TEXT | {"image": torch.rand(1, 3, 16, 16), "latents": torch.randn(1, 4, 8, 8)}

    def run(end: float) -> Tensor:
        return pipe(**inputs, num_inference_steps=10, output_type="latent", control_guidance_end=end).images

    plain = run(0.5)
    accelerate_pipeline(pipe, interval=1)
    assert torch.equal(run(0.5), plain)
    pipe.acceleration.remove()
    accelerate_pipeline(pipe, interval=9, warmup=2)
    run(1.0)
    assert pipe.acceleration.report().sites[0].computed == {"call 0": 2}
    run(0.5)
    assert pipe.acceleration.report().sites[0].computed == {"call 0": 2}


SOLVERS = {
    "heun": (lambda: HeunDiscreteScheduler(), 15),
    "pndm": (lambda: PNDMScheduler(skip_prk_steps=True), 9),
    "pndm with its warm-up": (lambda: PNDMScheduler(), 17),
    "unipc": (lambda: UniPCMultistepScheduler(), 8),
    "lcm": (lambda: LCMScheduler(), 8),
}


@pytest.mark.parametrize(("make", "evaluations"), SOLVERS.values(), ids=SOLVERS)
def test_steps_are_evaluations(make: Any, evaluations: int) -> None:
    pipe = tiny.stable_diffusion()
    pipe.scheduler = make()

    def run() -> Tensor:
        return tiny.run_unet(pipe, generator=torch.Generator().manual_seed(0))

    plain = run()
    accelerate_pipeline(pipe, interval=1)
    assert torch.equal(run(), plain)
    pipe.acceleration.remove()
    accelerate_pipeline(pipe, interval=3, warmup=2)
    run()
    assert pipe.acceleration.plan == Plan.every(3, evaluations, 2)
    assert pipe.acceleration.report().sites[0].computed == {"call 0": len(pipe.acceleration.plan.computed())}


def test_a_network_without_a_timestep_in_a_pipeline() -> None:
    """aMUSEd fills in masked tokens: its network is never told the time, its scheduler tells the steps."""
    network = UVit2DModel(
        hidden_size=16,
        encoder_hidden_size=24,
        cond_embed_dim=24,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        vocab_size=32,
        codebook_size=31,
        num_hidden_layers=2,
        num_attention_heads=2,
        in_channels=16,
        block_out_channels=16,
        block_num_heads=2,
        num_res_blocks=1,
        intermediate_size=32,
        sample_size=8,
    )
    vae = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, num_vq_embeddings=32)
    scheduler = AmusedScheduler(mask_token_id=31)
    pipe = AmusedPipeline(
        vqvae=vae, tokenizer=None, text_encoder=None, transformer=tiny.randomize(network), scheduler=scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    inputs: dict[str, Any] = {"prompt_embeds": torch.randn(1, 24), "encoder_hidden_states": torch.randn(1, 6, 24)}
    inputs |= {"height": 8, "width": 8, "num_inference_steps": 9, "guidance_scale": 1.0, "output_type": "latent"}

    def run() -> Tensor:
        return pipe(generator=torch.Generator().manual_seed(0), **inputs).images

    plain = run()
    accelerate_pipeline(pipe, interval=1)
    assert torch.equal(run(), plain)
    pipe.acceleration.remove()
    accelerate_pipeline(pipe, interval=3, warmup=2)
    run()
    assert pipe.acceleration.report().sites[0].computed == {"call 0": 4}


class PriorAndPicture(DiffusionPipeline):
    """A pipeline in the manner of unCLIP: two networks, each driven by a scheduler of its own."""

    def __init__(self, prior: Any, prior_scheduler: Any, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(prior=prior, prior_scheduler=prior_scheduler, unet=unet, scheduler=scheduler)

    def __call__(self, prior_steps: int, steps: int) -> Tensor:
        text, result = torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 4, 8, 8)
        for network, scheduler, n in (
            (self.prior, self.prior_scheduler, prior_steps),
            (self.unet, self.scheduler, steps),
        ):
            scheduler.set_timesteps(n)
            x = result + torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, t, text)[0], t, x)[0]
            result = x
        return result


def test_each_network_follows_its_own_scheduler() -> None:
    pipe = PriorAndPicture(tiny.unet(0), DDIMScheduler(), tiny.unet(1), DDIMScheduler())
    plain = pipe(10, 6)
    accelerate_pipeline(pipe, interval=3, warmup=2)
    pipe(10, 6)
    assert pipe.acceleration.networks == ["unet", "prior"]
    for name, steps in (("prior", 10), ("unet", 6)):
        report = pipe.acceleration.report(name)
        assert report.plan == Plan.every(3, steps, 2)
        assert report.sites[0].computed == {"call 0": len(report.plan.computed())}
    pipe.acceleration.remove()
    assert torch.equal(pipe(10, 6), plain)
    assert not any("step" in vars(scheduler) for scheduler in (pipe.scheduler, pipe.prior_scheduler))


def test_clocks_are_shared_where_schedulers_are() -> None:
    ticking = clocks(wan())
    assert list(ticking) == list(denoisers(wan())) == ["transformer", "transformer_2"]
    assert ticking["transformer"] is ticking["transformer_2"]
