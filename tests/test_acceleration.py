"""The two calls users make: guidance branches, shared parts, bare networks, and what is refused."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, HeunDiscreteScheduler, PNDMScheduler, TaylorSeerCacheConfig
from torch import Tensor, nn

import diffaccel
from diffaccel import METHODS, Plan, TaylorSeer, accelerate, accelerate_pipeline
from tests import tiny


def test_separate_guidance_branches_keep_separate_histories() -> None:
    """A run of two calls a step returns what two networks return that each serve one branch alone."""
    pipe = tiny.flux()
    calls: list[tuple[dict[str, Any], Tensor]] = []
    accelerate_pipeline(pipe, "taylorseer", interval=3, order=1, level="sublayer")
    pipe.transformer.register_forward_hook(
        lambda _, args, kwargs, out: calls.append((kwargs, out[0])), with_kwargs=True
    )
    tiny.run_flux(pipe, guidance=True)
    assert [site.skipped for site in pipe.acceleration.report().sites] == [{"cond": 4, "uncond": 4}] * 8
    for branch in (0, 1):
        network = tiny.flux_transformer()
        with accelerate(network, "taylorseer", steps=8, interval=3, order=1, level="sublayer"):
            for kwargs, output in calls[branch::2]:
                assert torch.equal(network(**kwargs)[0], output)


def test_batched_guidance_equals_separate_calls() -> None:
    """One call with both branches in its batch forecasts what two calls forecast."""
    network = tiny.unet()
    x, text = torch.randn(1, 4, 8, 8), torch.randn(2, 6, 24)
    with accelerate(network, "taylorseer", steps=9, interval=3):
        batched = [network(torch.cat([x, x]) / (1 + t), 900 - 100 * t, text)[0] for t in range(9)]
    with accelerate(network, "taylorseer", steps=9, interval=3):
        separate = [
            torch.cat([network(x / (1 + t), 900 - 100 * t, text[i : i + 1])[0] for i in range(2)]) for t in range(9)
        ]
    for a, b in zip(batched, separate, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("switch_at", [2, 4, 5])
def test_guidance_switched_off_in_mid_run(switch_at: int) -> None:
    """Stable Diffusion without its unconditional half from some step on: no anchor of the other shape is used."""
    pipe = accelerate_pipeline(tiny.stable_diffusion(), "taylorseer", interval=3)

    def switch(pipe: Any, step: int, t: Any, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == switch_at:
            pipe._guidance_scale = 1.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"][-1:]
        return kwargs

    more = {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    assert tiny.run_unet(pipe, guidance=True, **more).isfinite().all()
    # The history of the new shape begins with the plan's warm-up of three steps.
    computed = set(Plan.every(3, 8, 3).computed()) | set(range(switch_at + 1, min(switch_at + 4, 8)))
    assert sum(pipe.acceleration.report().sites[0].computed.values()) == len(computed)


def test_a_cancelled_run_leaves_the_next_one_right() -> None:
    pipe = accelerate_pipeline(tiny.flux(), "taylorseer", interval=3)
    expected = tiny.run_flux(pipe)

    def cancel(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt):
        tiny.run_flux(pipe, seed=9, callback_on_step_end=cancel)
    assert torch.equal(tiny.run_flux(pipe), expected)


@pytest.mark.parametrize("cancel_first", [False, True])
def test_pipelines_that_share_a_transformer_start_clean(cancel_first: bool) -> None:
    one = accelerate_pipeline(tiny.flux(), "taylorseer", interval=3)
    two = tiny.flux(transformer=one.transformer)
    assert two.scheduler is not one.scheduler
    expected = tiny.run_flux(one)

    def cancel(pipe: Any, step: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            raise KeyboardInterrupt
        return kwargs

    def run_one() -> Tensor:
        return tiny.run_flux(one)

    for _ in range(2):
        if cancel_first:
            with pytest.raises(KeyboardInterrupt):
                tiny.run_flux(one, seed=8, callback_on_step_end=cancel)
        # The second pipeline steps by a scheduler of its own, and gets the same acceleration.
        assert torch.equal(tiny.run_flux(two), expected)
        assert torch.equal(run_one(), expected)
    one.acceleration.remove()
    plain = tiny.run_flux(one)
    assert torch.equal(tiny.run_flux(two), plain)
    assert not torch.equal(plain, expected)


def test_another_class_of_pipeline_with_all_parts_shared() -> None:
    """Text-to-image and image-to-image in turn, one network and one scheduler: each run is that of a pipeline alone."""

    def edit(pipe: Any) -> Tensor:
        inputs = {"prompt_embeds": torch.ones(1, 6, 24), "pooled_prompt_embeds": torch.ones(1, 24)}
        size = {"height": 32, "width": 32, "num_inference_steps": 10, "strength": 0.7, "output_type": "latent"}
        noise = torch.Generator().manual_seed(0)
        images: Tensor = pipe(image=torch.full((1, 3, 32, 32), 0.5), generator=noise, **inputs, **size).images
        return images

    pipe = accelerate_pipeline(tiny.flux(), interval=3, order=1)
    other = tiny.flux(kind=FluxImg2ImgPipeline, transformer=pipe.transformer)
    other.scheduler = pipe.scheduler
    drawn = tiny.run_flux(accelerate_pipeline(tiny.flux(), interval=3, order=1))
    edited = edit(accelerate_pipeline(tiny.flux(kind=FluxImg2ImgPipeline), interval=3, order=1))
    for _ in range(2):
        assert torch.equal(tiny.run_flux(pipe), drawn)
        assert torch.equal(edit(other), edited)
    pipe.acceleration.remove()
    assert torch.equal(edit(other), edit(tiny.flux(kind=FluxImg2ImgPipeline)))
    assert not torch.equal(edit(other), edited)


def test_two_pipelines_that_share_a_scheduler() -> None:
    one, two = tiny.flux(1), tiny.flux(2)
    two.scheduler = one.scheduler
    accelerate_pipeline(one, "taylorseer", interval=3)
    expected = tiny.run_flux(one)
    accelerate_pipeline(two, "taylorseer", interval=4)
    tiny.run_flux(two)
    assert torch.equal(tiny.run_flux(one), expected)
    # Removed in the order in which they came: the second one's watch on the scheduler stays.
    one.acceleration.remove()
    tiny.run_flux(two)
    assert two.acceleration.report().steps == 8
    two.acceleration.remove()
    assert "step" not in vars(one.scheduler)


def test_image_to_image_counts_the_steps_it_makes() -> None:
    pipe = accelerate_pipeline(tiny.flux(kind=FluxImg2ImgPipeline), "taylorseer", interval=3)
    pipe(
        image=torch.rand(1, 3, 32, 32),
        strength=0.6,
        prompt_embeds=torch.randn(1, 6, 24),
        pooled_prompt_embeds=torch.randn(1, 24),
        height=32,
        width=32,
        num_inference_steps=10,
        output_type="latent",
    )
    assert pipe.acceleration.plan.steps == 6
    assert pipe.acceleration.plan.computed() == [0, 1, 2, 5]


@pytest.mark.parametrize(("scheduler", "evaluations"), [(PNDMScheduler, 9), (HeunDiscreteScheduler, 15)])
def test_solvers_that_visit_a_time_twice(scheduler: type[Any], evaluations: int) -> None:
    pipe = tiny.stable_diffusion()
    pipe.scheduler = scheduler(**({"skip_prk_steps": True, "steps_offset": 1} if evaluations == 9 else {}))
    accelerate_pipeline(pipe, "taylorseer", interval=3)
    tiny.run_unet(pipe, steps=8)
    assert pipe.acceleration.plan.steps == evaluations
    assert list(pipe.acceleration.report().sites[0].computed) == ["call 0"]


def test_a_copied_scheduler_does_not_drive_the_original() -> None:
    pipe = accelerate_pipeline(tiny.flux(), "taylorseer")
    tiny.run_flux(pipe)
    duplicate = copy.deepcopy(pipe.scheduler)
    duplicate.set_timesteps(4, mu=0.5)
    duplicate.step(torch.zeros(1), duplicate.timesteps[0], torch.zeros(1))
    assert duplicate.step_index == 1
    assert pipe.scheduler.step_index == 8


def test_a_bare_network_in_a_loop_of_ones_own() -> None:
    network = tiny.unet()
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 24)

    def loop(steps: int) -> list[Tensor]:
        return [network(x / (1 + i), torch.tensor(900 - 100 * i), text)[0] for i in range(steps)]

    plain = loop(8)
    with accelerate(network, TaylorSeer(interval=3, level="model"), steps=8) as acceleration:
        first = loop(8)
        assert acceleration.plan.computed() == [0, 1, 2, 5]
        loop(5)  # cut short
        assert all(torch.equal(a, b) for a, b in zip(loop(8), first, strict=True))
    assert not torch.equal(first[-1], plain[-1])
    assert all(torch.equal(a, b) for a, b in zip(loop(8), plain, strict=True))


def test_a_call_that_fails_in_the_first_step_leaves_nothing_behind() -> None:
    network = tiny.unet()
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 24)

    def loop() -> list[Tensor]:
        return [network(x / (1 + i), 900 - 100 * i, text)[0] for i in range(6)]

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with accelerate(network, TaylorSeer(interval=3, warmup=1), steps=6):
        expected = loop()
        # Fails after every site has computed, at the very timestep at which the next loop starts.
        handle = network.conv_out.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            network(torch.randn(1, 4, 8, 8), 900, text)
        handle.remove()
        assert all(torch.equal(a, b) for a, b in zip(loop(), expected, strict=True))


def test_more_steps_than_announced_is_an_error() -> None:
    network = tiny.unet()
    inputs = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 24)
    with accelerate(network, "taylorseer", steps=3):
        for time in (900, 800, 700):
            network(inputs[0], time, inputs[1])
        with pytest.raises(RuntimeError, match="more than the 3 steps announced"):
            network(inputs[0], 600, inputs[1])


def test_plan_can_be_printed_before_the_run() -> None:
    pipe = accelerate_pipeline(tiny.flux(), "taylorseer")
    assert pipe.acceleration.plan == Plan.every(6, 28, 3)
    assert "no run yet" in str(pipe.acceleration)
    tiny.run_flux(pipe, steps=12)
    assert pipe.acceleration.plan == Plan.every(6, 12, 3)


def test_report_reads_well() -> None:
    pipe = accelerate_pipeline(tiny.flux(), "taylorseer", interval=3, level="sublayer")
    tiny.run_flux(pipe, guidance=True)
    text = str(pipe.acceleration.report())
    assert "8 sites, cond: 4 computed, 4 skipped" in text
    assert "8 sites, uncond: 4 computed, 4 skipped" in text
    assert "bound 2.00x" in text


@pytest.mark.parametrize(("level", "features"), [("sublayer", 2 * (22 + 22) + 2 * 22), ("model", 22)])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_memory_is_order_plus_one_features_a_site_and_is_freed(level: str, features: int, order: int) -> None:
    # 16 image and 6 text tokens of width 32 in float32: attention and MLP of two double blocks, two single blocks.
    pipe = accelerate_pipeline(tiny.flux(), TaylorSeer(3, order, level=level))
    tiny.run_flux(pipe, steps=10)
    assert pipe.acceleration.report().memory == (order + 1) * features * 32 * 4
    (session,) = pipe.acceleration._sessions.values()
    assert session._held() == 0


def test_nothing_skipped_is_said(caplog: pytest.LogCaptureFixture) -> None:
    pipe = accelerate_pipeline(tiny.flux(), "taylorseer")
    with caplog.at_level(logging.WARNING, "diffaccel"):
        tiny.run_flux(pipe, steps=3)
    assert "nothing is skipped" in caplog.text
    assert "computes all 3 steps" in caplog.text


def test_a_plan_that_does_not_fit_the_run_is_an_error() -> None:
    pipe = accelerate_pipeline(tiny.flux(), TaylorSeer(schedule=Plan.every(3, 20)))
    with pytest.raises(ValueError, match=r"covers 20 steps but this run has 8: .*num_inference_steps=20"):
        tiny.run_flux(pipe, steps=8)
    assert tiny.run_flux(pipe, steps=20).isfinite().all()


class HalfUsed(nn.Module):
    """A network that never calls its second block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(tiny.flux_transformer().single_transformer_blocks)

    def forward(self, x: Tensor, timestep: float) -> Tensor:
        return self.blocks[0](x, x, torch.zeros(1, 32))[1]


def test_a_level_of_which_no_site_is_reached_is_an_error() -> None:
    network = HalfUsed()
    with (
        accelerate(network, "taylorseer", steps=4),
        pytest.raises(RuntimeError, match=r"HalfUsed did not call blocks\.1 in a whole step .*choose another level"),
    ):
        network(torch.zeros(1, 3, 32), 1.0)


def test_a_site_that_a_network_does_not_use_is_said_once_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    network = HalfUsed()
    with accelerate(network, "taylorseer", steps=4, level="block", interval=9, warmup=1) as acceleration:
        with caplog.at_level(logging.WARNING, "diffaccel"):
            for run in range(2):
                for time in range(4):
                    network(torch.full((1, 3, 32), 1.0 + run), float(time))
        assert [site.skipped for site in acceleration.report().sites] == [{"call 0": 3}, {}]
    assert caplog.text.count("HalfUsed did not call 1 of 2 sites, blocks.1 first") == 1


class Repeating(HalfUsed):
    """A network that runs its blocks twice."""

    def passes(self, timestep: float) -> int:
        return 2

    def forward(self, x: Tensor, timestep: float) -> Tensor:
        for _ in range(self.passes(timestep)):
            x = self.blocks[1](x, self.blocks[0](x, x, torch.zeros(1, 32))[1], torch.zeros(1, 32))[1]
        return x


@pytest.mark.parametrize("level", ["block", "model"])
def test_each_call_of_a_block_that_runs_repeatedly_has_its_own_history(level: str) -> None:
    """Plain reuse repeats what the first and the second call of the last computed step returned."""
    network, outputs = Repeating(), []
    network.blocks[1].register_forward_hook(lambda _, args, output: outputs.append(output[1]))
    with accelerate(network, "taylorseer", steps=3, level=level, interval=9, order=0, warmup=1) as acceleration:
        for time in range(3):
            network(torch.full((1, 3, 32), 1.0 + time), float(time))
        assert all(site.skipped == {"call 0": 2} for site in acceleration.report().sites)
    assert not torch.equal(outputs[0], outputs[1])
    assert all(torch.equal(outputs[i], outputs[i % 2]) for i in range(6))


class Growing(Repeating):
    """A network that runs its blocks once at first, twice later."""

    def passes(self, timestep: float) -> int:
        return 1 if timestep == 0 else 2


def test_a_block_called_more_often_than_before_is_an_error() -> None:
    network = Growing()
    with accelerate(network, "taylorseer", steps=4, warmup=1):
        network(torch.zeros(1, 3, 32), 0.0)
        with pytest.raises(RuntimeError, match="more often in one step than in the step before"):
            network(torch.zeros(1, 3, 32), 1.0)


class Timeless(HalfUsed):
    """A network without a timestep."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe: accelerate_pipeline(pipe, "taylorsear"), ValueError, "did you mean 'taylorseer'"),
        (lambda pipe: accelerate_pipeline(pipe, "taylorseer", intervall=3), TypeError, "did you mean 'interval'"),
        (lambda pipe: accelerate_pipeline(pipe, TaylorSeer(), intervall=3), TypeError, "Options: interval, order"),
        (lambda pipe: accelerate_pipeline(pipe, TaylorSeer), TypeError, r"an instance such as TaylorSeer\(\)"),
        (lambda pipe: accelerate_pipeline(pipe, interval=0), ValueError, "interval must be"),
        (lambda pipe: accelerate_pipeline(pipe, level="layer"), ValueError, "unknown level 'layer'"),
        (lambda pipe: accelerate_pipeline(pipe.transformer), TypeError, r"use diffaccel\.accelerate"),
        (lambda pipe: accelerate_pipeline("flux"), TypeError, "needs a scheduler"),
        (lambda pipe: accelerate(pipe, steps=8), TypeError, r"diffaccel\.accelerate_pipeline"),
        (lambda pipe: accelerate(pipe.transformer, steps=0), ValueError, "steps must be at least 1"),
        (lambda pipe: accelerate(nn.Linear(1, 1), steps=8), ValueError, "no model site was found in Linear"),
        (lambda pipe: accelerate(Timeless(), steps=8), TypeError, r"Timeless\.forward has no timestep"),
    ],
)
def test_refused_and_left_alone(call: Any, error: type[Exception], message: str) -> None:
    pipe = tiny.flux()
    before = [dict(vars(owner)) for owner in (pipe, pipe.scheduler, *pipe.transformer.modules())]
    with pytest.raises(error, match=message):
        call(pipe)
    assert [dict(vars(owner)) for owner in (pipe, pipe.scheduler, *pipe.transformer.modules())] == before


def test_a_network_with_a_diffusers_cache_is_refused() -> None:
    pipe = tiny.flux()
    pipe.transformer.enable_cache(TaylorSeerCacheConfig())
    with pytest.raises(ValueError, match=r"disable_cache\(\) first"):
        accelerate_pipeline(pipe)


def test_options_change_an_instance() -> None:
    pipe = accelerate_pipeline(tiny.flux(), TaylorSeer(order=2), interval=7)
    assert pipe.acceleration.method == TaylorSeer(interval=7, order=2)


def test_public_names() -> None:
    assert {"fitted", "hyca", "taylorseer"} <= set(METHODS)
    assert all(hasattr(diffaccel, name) for name in diffaccel.__all__)
    with pytest.raises(AttributeError, match="no attribute 'accelerat'"):
        diffaccel.accelerat  # noqa: B018
