"""Policies of other projects at toy size, with their attributes and methods: what users hand over as it is.

Stand-ins of lerobot's `multi_task_dit` and `diffusion`, of real-stanford's low-dimensional policies and of RDT's
runner. Random weights, none of them near zero; nothing imports diffaccel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from tests.policy_rdt import RDTRunner
from tests.policy_transformers import (
    ACTION,
    EXECUTED,
    HORIZON,
    OBSERVATION,
    OBSERVED,
    SCHEDULE,
    DiffusionTransformer,
    TransformerForDiffusion,
    randomize,
)
from tests.policy_unets import ConditionalUnet1D, DiffusionPolicy


class DiffusionObjective:
    """lerobot's sampling with a scheduler of diffusers. No module: the policy hands it the network."""

    def __init__(self, scheduler: str = "DDPM", calls: int = 10) -> None:
        kind = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[scheduler]
        self.noise_scheduler = kind(**SCHEDULE, clip_sample=False)
        self.num_inference_steps = calls

    def conditional_sample(self, model: nn.Module, batch_size: int, conditioning_vec: Tensor) -> Tensor:
        sample = torch.randn(batch_size, HORIZON, ACTION)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            predicted = model(sample, torch.full((batch_size,), int(t)), conditioning_vec=conditioning_vec)
            sample = self.noise_scheduler.step(predicted, t, sample).prev_sample
        return sample


class FlowMatchingObjective:
    """lerobot's integration of a velocity from time 0 up to 1; rk4 calls the network four times a step."""

    def __init__(self, method: str = "euler", steps: int = 10) -> None:
        self.method, self.steps = method, steps

    def conditional_sample(self, model: nn.Module, batch_size: int, conditioning_vec: Tensor) -> Tensor:
        x, dt = torch.randn(batch_size, HORIZON, ACTION), 1 / self.steps

        def velocity(x: Tensor, t: float) -> Tensor:
            with torch.no_grad():
                return model(x, torch.full((batch_size,), t), conditioning_vec=conditioning_vec)

        for i in range(self.steps):
            t = i * dt
            k1 = velocity(x, t)
            if self.method == "euler":
                x = x + dt * k1
                continue
            k2 = velocity(x + dt / 2 * k1, t + dt / 2)
            k3 = velocity(x + dt / 2 * k2, t + dt / 2)
            k4 = velocity(x + dt * k3, t + dt)
            x = x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x


class MultiTaskDiTPolicy(nn.Module):
    """lerobot's `multi_task_dit`: `select_action` runs the network only when its queue of actions is empty."""

    def __init__(self, objective: Any = None, layers: int = 3, rope: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(horizon=HORIZON, n_obs_steps=OBSERVED, n_action_steps=EXECUTED)
        self.observation_encoder = nn.Linear(OBSERVATION, 8)
        self.noise_predictor = DiffusionTransformer(ACTION, 8 * OBSERVED, layers=layers, rope=rope)
        self.objective = objective or DiffusionObjective()
        randomize(self).requires_grad_(False)
        self.noise_predictor.output_proj.weight.mul_(0.1)  # no norm before it, so that features are large
        self.reset()

    def reset(self) -> None:
        self._queues: dict[str, deque[Tensor]] = {
            "observation.state": deque(maxlen=OBSERVED),
            "action": deque(maxlen=EXECUTED),
        }

    def _generate_actions(self, batch: dict[str, Tensor]) -> Tensor:
        given = self.observation_encoder(batch["observation.state"]).flatten(1)
        actions = self.objective.conditional_sample(self.noise_predictor, len(given), given)
        return actions[:, OBSERVED - 1 : OBSERVED - 1 + EXECUTED]

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        self.eval()
        batch = {**batch, "observation.state": torch.stack(list(self._queues["observation.state"]), 1)}
        return self._generate_actions(batch)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        seen = self._queues["observation.state"]
        seen.extend([batch["observation.state"]] * (1 if seen else OBSERVED))
        if not self._queues["action"]:
            self._queues["action"].extend(self.predict_action_chunk(batch).transpose(0, 1))
        return self._queues["action"].popleft()


class LowdimPolicy(nn.Module):
    """real-stanford's low-dimensional policy, with any of its networks; observations are conditions or inpainted."""

    def __init__(self, model: nn.Module, calls: int = 10, obs_as_cond: bool = True) -> None:
        super().__init__()
        self.model = randomize(model)
        self.noise_scheduler = DDPMScheduler(**SCHEDULE, variance_type="fixed_small", clip_sample=False)
        self.horizon, self.n_obs_steps, self.n_action_steps = HORIZON, OBSERVED, EXECUTED
        self.obs_as_cond, self.num_inference_steps = obs_as_cond, calls
        self.normalizer = nn.ParameterDict(
            {
                f"{field}_{part}": nn.Parameter(torch.full((dim,), value), requires_grad=False)
                for field, dim in (("obs", OBSERVATION), ("action", ACTION))
                for part, value in (("scale", 0.5), ("offset", 0.1))
            }
        )

    def conditional_sample(
        self, condition_data: Tensor, condition_mask: Tensor, cond: Tensor | None = None, generator: Any = None
    ) -> Tensor:
        trajectory = torch.randn(condition_data.shape, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            trajectory[condition_mask] = condition_data[condition_mask]
            if isinstance(self.model, ConditionalUnet1D):
                predicted = self.model(trajectory, t, local_cond=None, global_cond=cond)
            else:
                predicted = self.model(trajectory, t, cond)
            trajectory = self.noise_scheduler.step(predicted, t, trajectory, generator=generator).prev_sample
        trajectory[condition_mask] = condition_data[condition_mask]
        return trajectory

    @torch.no_grad()
    def predict_action(self, obs_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        scaled = obs_dict["obs"] * self.normalizer["obs_scale"] + self.normalizer["obs_offset"]
        batch, cond = len(scaled), scaled[:, :OBSERVED]
        data = torch.zeros(batch, HORIZON, ACTION + OBSERVATION * (not self.obs_as_cond))
        mask = torch.zeros_like(data, dtype=torch.bool)
        if not self.obs_as_cond:
            data[:, :OBSERVED, ACTION:], mask[:, :OBSERVED, ACTION:] = cond, True
        elif isinstance(self.model, ConditionalUnet1D):
            cond = cond.flatten(1)
        found = self.conditional_sample(data, mask, cond=cond if self.obs_as_cond else None)[..., :ACTION]
        found = (found - self.normalizer["action_offset"]) / self.normalizer["action_scale"]
        return {"action": found[:, OBSERVED - 1 : OBSERVED - 1 + EXECUTED], "action_pred": found}


def decoder_policy(calls: int = 10, layers: int = 2, **config: Any) -> LowdimPolicy:
    """real-stanford's policy with condition tokens, causal."""
    options = {"n_obs_steps": OBSERVED, "cond_dim": OBSERVATION, "causal_attn": True, "n_layer": layers} | config
    return LowdimPolicy(TransformerForDiffusion(ACTION, ACTION, HORIZON, **options), calls)


def bert_policy(calls: int = 10, layers: int = 2) -> LowdimPolicy:
    """real-stanford's policy without condition tokens: observations are inpainted."""
    size = ACTION + OBSERVATION
    network = TransformerForDiffusion(size, size, HORIZON, OBSERVED, n_layer=layers, time_as_cond=False)
    return LowdimPolicy(network, calls, obs_as_cond=False)


def unet_policy(calls: int = 10) -> LowdimPolicy:
    """real-stanford's policy with a convolutional UNet."""
    return LowdimPolicy(ConditionalUnet1D(ACTION, OBSERVED * OBSERVATION), calls)


def observe(policy: nn.Module, batch: int = 1, seed: int = 0) -> tuple[Any, ...]:
    """Positional arguments of a query: of `predict_action`, of `select_action` or of `predict_action_chunk`."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    if isinstance(policy, RDTRunner):
        words = torch.arange(5) < 4
        return (
            drawn(5, 12),
            words.expand(batch, -1),
            drawn(7, 10),
            drawn(1, ACTION),
            torch.ones(batch, 1, ACTION),
            (torch.full((batch,), 25.0)),
        )
    if isinstance(policy, MultiTaskDiTPolicy):
        return ({"observation.state": drawn(OBSERVATION)},)
    return ({"obs" if isinstance(policy, LowdimPolicy) else "observation.state": drawn(OBSERVED, OBSERVATION)},)


def query(policy: nn.Module, batch: int = 1, seed: int = 0) -> Tensor:
    """One query through the policy's own public method, from a seed; the actions of a chunk."""
    torch.manual_seed(seed)
    given = observe(policy, batch, seed)
    if isinstance(policy, MultiTaskDiTPolicy):
        policy.reset()
        return torch.stack([policy.select_action(*given) for _ in range(EXECUTED)], 1)
    if isinstance(policy, DiffusionPolicy):
        return policy.predict_action_chunk(*given)
    found = policy.predict_action(*given)
    return found["action"] if isinstance(found, dict) else found


Made = Callable[[], nn.Module]

# How each is made, the path of its network, what it samples with, network calls a query.
FOREIGN: dict[str, tuple[Made, str, str, int]] = {
    "dit": (MultiTaskDiTPolicy, "noise_predictor", "DDPMScheduler", 10),
    "dit-ddim": (
        lambda: MultiTaskDiTPolicy(DiffusionObjective("DDIM", 6), rope=False),
        "noise_predictor",
        "DDIMScheduler",
        6,
    ),
    "dit-euler": (
        lambda: MultiTaskDiTPolicy(FlowMatchingObjective("euler", 8)),
        "noise_predictor",
        "FlowMatchingObjective",
        8,
    ),
    "dit-rk4": (
        lambda: MultiTaskDiTPolicy(FlowMatchingObjective("rk4", 3)),
        "noise_predictor",
        "FlowMatchingObjective",
        12,
    ),
    "decoder": (decoder_policy, "model", "DDPMScheduler", 10),
    "bert": (bert_policy, "model", "DDPMScheduler", 10),
    "rdt": (RDTRunner, "model", "DPMSolverMultistepScheduler", 5),
    "unet": (unet_policy, "model", "DDPMScheduler", 10),
    "unet-lerobot": (DiffusionPolicy, "diffusion.unet", "DDPMScheduler", 10),
}
