"""Does a policy pipeline sample what its network, scheduler and normalizer say, and come back from files as it was?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from diffaccel import accelerate_pipeline
from diffaccel.pipelines.policies.normalizer import LinearNormalizer
from diffaccel.pipelines.policies.transformer import TransformerForDiffusion
from diffaccel.pipelines.policy import PolicyPipeline
from tests.policies import ACTION, EXECUTED, HORIZON, OBSERVATION, OBSERVED, ConditionalUnet1D, randomize
from tests.policy_transformers import DiffusionTransformer

COSINE = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
DIFFUSION = {
    "ddpm": DDPMScheduler(**COSINE, clip_sample=False),
    "ddim": DDIMScheduler(**COSINE, clip_sample=False),
    "dpmsolver": DPMSolverMultistepScheduler(**COSINE),
    "unipc": UniPCMultistepScheduler(**COSINE),
    "euler": EulerDiscreteScheduler(**COSINE, timestep_spacing="leading"),
    "heun": HeunDiscreteScheduler(**COSINE, timestep_spacing="leading"),
}


def transformer(**config: Any) -> TransformerForDiffusion:
    sizes = {"n_obs_steps": OBSERVED, "cond_dim": OBSERVATION, "n_layer": 2, "n_head": 4, "n_emb": 32}
    made = TransformerForDiffusion(ACTION, ACTION, HORIZON, **sizes, **config)
    return randomize(made)


def normalizer() -> LinearNormalizer:
    torch.manual_seed(1)
    return LinearNormalizer.of(3 * torch.randn(50, OBSERVATION) + 1, torch.randn(50, ACTION) - 2)


def policy(network: nn.Module | None = None, scheduler: Any = None, **options: Any) -> PolicyPipeline:
    schedule = scheduler or DDPMScheduler(**COSINE, prediction_type="sample", clip_sample=False)
    given = {"horizon": HORIZON, "n_obs_steps": OBSERVED, "n_action_steps": EXECUTED} | options
    return PolicyPipeline(network or transformer(), schedule, normalizer(), **given)


def observations(batch: int = 2) -> Tensor:
    return torch.randn(batch, OBSERVED, OBSERVATION, generator=torch.Generator().manual_seed(2))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Knowing(nn.Module):
    """Knows where it is to go, the newest observation of each, and predicts noise, or velocity, accordingly."""

    def __init__(self, alphas: Tensor | None) -> None:
        super().__init__()
        self.alphas, self.unused = alphas, nn.Parameter(torch.zeros(1))

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        goal = cond[:, -1:, :ACTION]
        if self.alphas is None:
            return (sample - goal) / (timestep[:, None, None] / 100)
        alpha = self.alphas[timestep.long()][:, None, None]
        return (sample - alpha.sqrt() * goal) / (1 - alpha).sqrt()


@pytest.mark.parametrize("name", [*DIFFUSION, "flow"])
def test_every_scheduler_arrives_where_a_knowing_network_points(name: str) -> None:
    scheduler = DIFFUSION[name] if name in DIFFUSION else FlowMatchEulerDiscreteScheduler(num_train_timesteps=100)
    pipe = policy(Knowing(getattr(scheduler, "alphas_cumprod", None)), scheduler)
    given = observations()
    output = pipe(given, num_inference_steps=10, generator=seeded(1, 2))
    goal = pipe.normalizer.observation(given)[:, -1:, :ACTION]
    expected = pipe.normalizer.unnormalized_action(goal).expand(-1, HORIZON, -1)
    torch.testing.assert_close(output.trajectory, expected, atol=0.02 if name in ("ddim", "ddpm") else 2e-3, rtol=0)
    assert torch.equal(output.actions, output.trajectory[:, OBSERVED - 1 : OBSERVED - 1 + EXECUTED])


@pytest.mark.parametrize("kind", [DDPMScheduler, EulerDiscreteScheduler], ids=["plain", "scaled"])
def test_the_loop_is_that_of_the_scheduler(kind: type[Any]) -> None:
    pipe = policy(scheduler=kind(**COSINE))
    output = pipe(observations(1), num_inference_steps=7, generator=torch.Generator().manual_seed(5))
    generator, schedule = torch.Generator().manual_seed(5), kind(**COSINE)
    schedule.set_timesteps(7)
    x = torch.randn(1, HORIZON, ACTION, generator=generator) * schedule.init_noise_sigma
    cond = observations(1) * pipe.normalizer.observation_scale + pipe.normalizer.observation_offset
    with torch.no_grad():
        for t in schedule.timesteps:
            predicted = pipe.denoiser(schedule.scale_model_input(x, t), t, cond)
            x = schedule.step(predicted, t, x, generator=generator).prev_sample
    assert torch.equal(output.trajectory, (x - pipe.normalizer.action_offset) / pipe.normalizer.action_scale)


@pytest.mark.parametrize(
    "network", [lambda: ConditionalUnet1D(ACTION, OBSERVED * OBSERVATION), lambda: DiffusionTransformer(ACTION, 12)]
)
def test_networks_that_take_observations_as_one_vector(network: Callable[[], nn.Module]) -> None:
    pipe = policy(randomize(network()))
    first, second = observations(2), observations(2)
    second[0, 0, 0] += 1  # an older observation counts, too
    one, other = (pipe(given, 3, generator=seeded(1, 2)).actions for given in (first, second))
    assert not torch.allclose(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_samples_do_not_depend_on_the_batch_they_are_in() -> None:
    pipe = policy()
    together = pipe(observations(3), 5, generator=seeded(1, 2, 3)).actions
    alone = pipe(observations(3)[1:2], 5, generator=seeded(2)).actions
    torch.testing.assert_close(together[1:2], alone)


def test_latents_arrays_and_tuples() -> None:
    pipe = policy()
    latents = torch.randn(2, HORIZON, ACTION)
    tensors = pipe(observations(), 4, torch.Generator().manual_seed(1), latents)
    arrays = pipe(observations().double().numpy(), 4, torch.Generator().manual_seed(1), latents, return_dict=False)
    assert torch.equal(tensors.actions, arrays[0])
    assert torch.equal(tensors.trajectory, arrays[1])


def test_gradients_flow_through_the_loop() -> None:
    pipe = policy(transformer(causal_attn=True).double())
    with torch.no_grad():
        conditioning = pipe.conditioning(observations())
        latents = pipe.noise(2, torch.Generator().manual_seed(1))

    def end(latents: Tensor) -> Tensor:
        return pipe.sample(conditioning, latents, 4, torch.Generator().manual_seed(2)).square().sum()

    start, direction = latents.clone().requires_grad_(), torch.randn_like(latents)
    (gradient,) = torch.autograd.grad(end(start), start)
    with torch.no_grad():
        change = (end(latents + 1e-5 * direction) - end(latents - 1e-5 * direction)) / 2e-5
    assert (gradient * direction).sum().item() == pytest.approx(change.item(), rel=1e-6)
    assert not pipe(observations(), 2).actions.requires_grad


def test_steps_are_those_asked_for_then_the_policys_then_the_schedulers() -> None:
    calls: list[int] = []
    network = transformer()
    network.register_forward_hook(lambda *_: calls.append(1))
    for options, asked, made in (({}, None, 100), ({"num_inference_steps": 6}, None, 6), ({}, 3, 3)):
        calls.clear()
        policy(network, **options)(observations(1), asked)
        assert len(calls) == made


def test_files_give_the_policy_back(tmp_path: Path) -> None:
    pipe = policy(scheduler=DDIMScheduler(**COSINE, prediction_type="sample"), num_inference_steps=5)
    pipe.save_pretrained(tmp_path)
    again = PolicyPipeline.from_pretrained(tmp_path)
    given = ("horizon", "n_obs_steps", "n_action_steps", "num_inference_steps")
    assert [again.config[name] for name in given] == [pipe.config[name] for name in given]
    assert isinstance(again.scheduler, DDIMScheduler)
    assert type(again.denoiser) is TransformerForDiffusion
    one, other = (found(observations(), generator=seeded(1, 2)).trajectory for found in (pipe, again))
    assert torch.equal(one, other)


def test_files_are_found_by_a_process_that_imported_the_pipeline_only(tmp_path: Path) -> None:
    policy().save_pretrained(tmp_path)
    code = "import sys; from diffaccel.pipelines.policy import PolicyPipeline as P; P.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_of_half_precision_are_loaded_in_full(tmp_path: Path) -> None:
    pipe = policy()
    wanted = {name: value.half().float() for name, value in pipe.denoiser.state_dict().items()}
    scale = pipe.normalizer.observation_scale.clone()
    pipe.to(torch.float16).save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) < 2.2 * sum(
        value.numel() for value in wanted.values()
    )
    again = PolicyPipeline.from_pretrained(tmp_path)
    assert all(torch.equal(value, wanted[name]) for name, value in again.denoiser.state_dict().items())
    assert torch.equal(again.normalizer.observation_scale, scale)  # positions are never rounded
    assert again.denoiser.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.1), (torch.float64, 1e-5)])
def test_other_dtypes(dtype: torch.dtype, near: float) -> None:
    latents = torch.randn(2, HORIZON, ACTION)
    made = [policy(scheduler=DDIMScheduler(**COSINE, prediction_type="sample", clip_sample=False)) for _ in range(2)]
    full, found = (pipe(observations(), 4, latents=latents).actions for pipe in (made[0], made[1].to(dtype)))
    assert made[1].normalizer.observation_scale.dtype == torch.float32
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.float(), full, atol=near, rtol=near)


def test_what_cannot_be_is_refused() -> None:
    for message, options in (("cannot hold", {"n_action_steps": 8}), ("at least 1", {"n_obs_steps": 0})):
        with pytest.raises(ValueError, match=message):
            policy(**options)
    with pytest.raises(TypeError, match=r"Linear takes no observations.*cond, global_cond or conditioning_vec"):
        policy(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observations": torch.zeros(2, OBSERVATION)}, r"shape \(batch, 2, 6\).*got \(2, 6\)"),
        ({"observations": torch.zeros(1, 3, OBSERVATION)}, r"got \(1, 3, 6\)"),
        ({"observations": torch.full((1, OBSERVED, OBSERVATION), torch.nan)}, "not finite"),
        ({"latents": torch.zeros(2, HORIZON, 1)}, r"latents must have shape \(2, 8, 3\), got \(2, 8, 1\)"),
        ({"generator": seeded(1)}, "1 generators for a batch of 2"),
        ({"num_inference_steps": 0}, "at least 1, got 0"),
    ],
)
def test_a_call_that_cannot_be_answered_is_refused_before_it_begins(arguments: dict[str, Any], message: str) -> None:
    pipe = policy()
    pipe.denoiser.register_forward_hook(lambda *_: pytest.fail("the network was called"))
    with pytest.raises(ValueError, match=message):
        pipe(**{"observations": observations(), **arguments})


@pytest.mark.parametrize("level", ["block", "model"])
def test_policies_are_accelerated_like_any_pipeline(level: str) -> None:
    pipe = policy(transformer(causal_attn=True))
    full = pipe(observations(), 10, seeded(1, 2)).actions
    accelerate_pipeline(pipe, "taylorseer", interval=1, level=level)
    assert torch.equal(pipe(observations(), 10, seeded(1, 2)).actions, full)
    pipe.acceleration.remove()
    accelerate_pipeline(pipe, "taylorseer", interval=5, order=1, level=level)
    fast = pipe(observations(), 10, seeded(1, 2)).actions
    assert not torch.equal(fast, full)
    report = pipe.acceleration.report()
    assert report.steps == 10
    assert report.bound > 2
    pipe.acceleration.remove()
    assert torch.equal(pipe(observations(), 10, seeded(1, 2)).actions, full)
