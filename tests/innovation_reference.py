"""Policies and networks for forecasts that follow the sample, and a slow reference of their statistics and runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from torch import Tensor, nn

from diffaccel.clock import PipelineClock
from diffaccel.fingerprint import Fingerprint
from diffaccel.innovation import Array, Statistics, moments
from diffaccel.pair_tape import PairTape
from diffaccel.pipelines.policies.transformer import TransformerForDiffusion
from diffaccel.pipelines.policy import PolicyPipeline
from diffaccel.response import responses
from tests.policies import ACTION, HORIZON, OBSERVATION, OBSERVED, SCHEDULE, randomize
from tests.test_policy_pipeline import policy
from tests.tiny import run_flux

STEPS = 12
OBSERVATIONS = torch.randn(18, OBSERVED, OBSERVATION, generator=torch.Generator().manual_seed(3))
SCHEDULERS = {
    "ddpm": lambda: DDPMScheduler(**SCHEDULE, variance_type="fixed_small", clip_sample=False),
    "ddim": lambda: DDIMScheduler(**SCHEDULE, clip_sample=False),
    "dpmsolver": lambda: DPMSolverMultistepScheduler(**SCHEDULE),
    "heun": lambda: HeunDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),  # visits times twice
}


class Following(nn.Module):
    """Returns a share of its sample that depends on the time: the sample tells all, whatever noise was added."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(ACTION, 1, 8, batch_first=True)])
        self.head = nn.Identity()
        self.register_buffer("shares", torch.linspace(0.2, 0.9, 100))

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        hidden = self.blocks[0](sample)
        return self.head(self.shares[timestep.long()][:, None, None] * sample + 0 * hidden)


def network(seed: int = 0, **config: Any) -> TransformerForDiffusion:
    sizes = {"n_obs_steps": OBSERVED, "cond_dim": OBSERVATION, "n_layer": 2, "n_head": 4, "n_emb": 32}
    made: TransformerForDiffusion = randomize(TransformerForDiffusion(ACTION, ACTION, HORIZON, **sizes, **config), seed)
    return made


def robot(scheduler: str = "ddpm", made: nn.Module | None = None, steps: int = STEPS) -> PolicyPipeline:
    """A policy with a transformer of two layers, random weights."""
    return policy(made or network(), SCHEDULERS[scheduler](), num_inference_steps=steps)


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def act(pipe: PolicyPipeline, batch: int = 3, pick: int | None = None, seed: int = 70) -> Tensor:
    """Trajectories of a query, or of one of its samples by itself."""
    rows = range(batch) if pick is None else [pick]
    given = OBSERVATIONS[list(rows)].to(next(pipe.denoiser.parameters()).dtype)
    found: Tensor = pipe(given, generator=generators([seed + row for row in rows])).trajectory
    return found


def pairs(pipe: PolicyPipeline, rows: range, seed: int) -> tuple[Tensor, Tensor]:
    """Outputs and samples of an uncached run, each of shape (K, batch, horizon, actions), by a hook."""
    kept: list[tuple[Tensor, Tensor]] = []
    hook = pipe.denoiser.register_forward_hook(lambda _, args, output: kept.append((output, args[0].clone())))
    pipe(OBSERVATIONS[list(rows)], generator=generators([seed + row for row in rows]))
    hook.remove()
    outputs, samples = zip(*kept, strict=True)
    return torch.stack(outputs), torch.stack(samples)


def explicit_run(pipe: PolicyPipeline, gram: Array, computed: Sequence[int], anchors: int, seed: int = 70) -> Tensor:
    """What `act` returns if skipped steps are forecast by least squares on moments, worked out one by one."""
    rows, steps = range(3), len(gram) // 2
    each = generators([seed + row for row in rows])
    given, x = pipe.conditioning(OBSERVATIONS[:3]), pipe.noise(3, each)
    pipe.scheduler.set_timesteps(pipe.default_steps)
    kept: list[tuple[int, Tensor, Tensor]] = []
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            if step in computed:
                output = pipe.denoiser(x, t.expand(3), **given)
                kept.insert(0, (step, output, x))
            else:
                near = kept[:anchors]
                at = [*(s for s, _, _ in near), *(steps + s for s, _, _ in near), steps + step]
                w = np.linalg.lstsq(gram[np.ix_(at, at)], gram[at, step], rcond=None)[0]
                parts = [*(f for _, f, _ in near), *(seen for _, _, seen in near), x]
                output = sum((float(one) * part.double() for one, part in zip(w, parts, strict=True)), torch.zeros(()))
                output = output.to(x.dtype)
            x = pipe.scheduler.step(output, t, x, generator=each, return_dict=False)[0]
    return pipe.normalizer.unnormalized_action(x)


def flux_statistics(pipe: Any, guidance: bool = False, steps: int = 8) -> Statistics:
    """Statistics of two runs of the toy Flux, which has no text encoders to be given prompts."""
    tape, total, count = PairTape(pipe.transformer, PipelineClock(pipe), 1), np.zeros(()), 0
    tape.attach()
    for seed in (80, 81):
        run_flux(pipe, steps=steps, guidance=guidance, seed=seed)
        for outputs, samples in tape.branches():
            total, count = total + moments(outputs, samples), count + 1
    tape.detach()
    tape.clock.detach()
    mark = Fingerprint.of(pipe.transformer, pipe.scheduler, steps, "output")
    return Statistics(total / count, tuple(responses(pipe.scheduler, answered=True)), mark, count)
