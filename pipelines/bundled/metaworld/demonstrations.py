"""Demonstrations by scripted experts whose hand is pushed about, so that they show how to recover, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.pipelines.bundled.metaworld.environment import LIMIT, Array, World

PUSH = 0.4
"""Largest deviation of the noise added to executed actions; each episode draws its own, evenly from 0 on."""
AFTER = 10
"""Steps recorded after success, so that the policy learns to stay."""
FIRST_SEED = 100_000
"""Seed of the first demonstration; evaluations begin at 0."""


@dataclass(frozen=True)
class Windows:
    """Pieces of demonstrations, one for each step of each episode.

    Attributes:
        observations: up to and with that step, shape (n, history, 39), oldest first.
        actions: the expert's from that step's first observation on, shape (n, horizon, 4).
        episodes: successful demonstrations.
    """

    observations: Tensor
    actions: Tensor
    episodes: int


def record(
    task: str, episodes: int, history: int, horizon: int, seed: int = 0, first: int = FIRST_SEED, progress: bool = True
) -> Windows:
    """Demonstrations of a task, cut into windows; episodes in which the pushed expert fails are left out.

    Trajectories begin with the oldest observation given. At both ends of an episode its first and last values repeat.

    Args:
        task: name of the task.
        episodes: successful demonstrations.
        history: observations given, the newest last.
        horizon: actions.
        seed: of the pushing.
        first: seed of the first episode's start, others follow.
        progress: show a progress bar on stderr.
    """
    world, windows, kept, number = World(task), [], 0, 0
    with tqdm(
        total=episodes, desc=f"{task} demonstrations", unit="episode", mininterval=5, disable=not progress
    ) as bar:
        while kept < episodes:
            found = demonstration(world, first + number, np.random.default_rng((seed, number)))
            number += 1
            if found is not None:
                windows += list(_cut(*found, history, horizon))
                kept += 1
                bar.update()
    observations, actions = (torch.tensor(np.array(part), dtype=torch.float32) for part in zip(*windows, strict=True))
    return Windows(observations, actions, kept)


def demonstration(world: World, seed: int, rng: np.random.Generator) -> tuple[Array, Array] | None:
    """Observations (steps, 39) of one episode and what the expert would do at each (steps, 4); None if it failed."""
    observation, push = world.reset(seed), rng.uniform(0, PUSH)
    observations, actions, left = [], [], None
    for _ in range(LIMIT):
        observations.append(observation)
        actions.append(world.expert(observation))
        observation, success = world.step(actions[-1] + rng.normal(0, push, len(actions[-1])))
        left = AFTER if left is None and success else left
        if left == 0:
            return np.array(observations), np.array(actions)
        left = None if left is None else left - 1
    return None


def _cut(observations: Array, actions: Array, history: int, horizon: int) -> Iterator[tuple[Array, Array]]:
    last = len(observations) - 1
    for step in range(last + 1):
        begin = step - history + 1
        yield (
            observations[[max(begin + k, 0) for k in range(history)]],
            actions[[min(max(begin + k, 0), last) for k in range(horizon)]],
        )
