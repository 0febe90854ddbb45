"""A policy at the controls of several worlds at once; what it does in one does not depend on the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diffaccel.pipelines.bundled.metaworld.environment import Array
from diffaccel.pipelines.policy import PolicyPipeline


class Player:
    """Decides for `diffaccel.pipelines.bundled.metaworld.environment.rollout`.

    Args:
        pipe: the policy.
        seeds: of the noise, one a world.
        steps: denoising steps; the policy's default if None.
    """

    def __init__(self, pipe: PolicyPipeline, seeds: Sequence[int], steps: int | None = None) -> None:
        self.pipe, self.steps = pipe, steps
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, observations: Array, running: Sequence[int]) -> Array:
        """Actions (running, n_action_steps, 4) for observations (running, n_obs_steps, 39)."""
        generators = [self.generators[i] for i in running]
        decided = self.pipe(observations, self.steps, generator=generators, return_dict=False)[0]
        actions: Array = decided.cpu().numpy().astype(np.float64)
        return actions
