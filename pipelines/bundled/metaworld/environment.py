"""Tasks of MetaWorld: simulated worlds that begin where a seed says, and their scripted experts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TASKS = ("drawer-open", "pick-place")
"""Tasks there are trained policies for; any other of MetaWorld can be had by its name without the version, too."""
OBSERVATION, ACTION = 39, 4
LIMIT = 200
"""Steps after which an episode has failed. The experts need 49 to 100."""


class World:
    """One simulated world: observations are 39 numbers of positions and angles, actions 4 in -1..1 (hand, gripper).

    Args:
        task: name of the task, such as "pick-place".

    Raises:
        ImportError: metaworld is not installed.
        ValueError: there is no such task.
    """

    def __init__(self, task: str) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as WORLDS
                from metaworld.policies import ENV_POLICY_MAP as EXPERTS
        except ImportError as error:
            raise ImportError("simulated worlds need metaworld: pip install 'diffaccel[policy]'") from error
        if f"{task}-v3" not in EXPERTS:
            known = ", ".join(sorted(name.removesuffix("-v3") for name in EXPERTS))
            raise ValueError(f"MetaWorld has no task {task!r}: choose one of {known}")
        self.task = task
        self.simulation: Any = WORLDS[f"{task}-v3-goal-observable"](seed=0)
        self.simulation._freeze_rand_vec = False  # else every episode begins alike,
        self.simulation.seeded_rand_vec = True  # or anyhow
        self._expert: Any = EXPERTS[f"{task}-v3"]()

    def reset(self, seed: int) -> Array:
        """Begin the episode of a seed: where object and goal lie depends on it alone. Returns the observation (39,)."""
        self.simulation.seed(seed)
        observation: Array = self.simulation.reset()[0]
        return observation

    def step(self, action: Array) -> tuple[Array, bool]:
        """Act once. Returns the next observation (39,), and whether the task is done."""
        observation, _, _, _, info = self.simulation.step(np.clip(action, -1, 1))
        return observation, bool(info["success"])

    def expert(self, observation: Array) -> Array:
        """What the scripted expert would do (4,)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its actions will be clipped
            action: Array = np.clip(self._expert.get_action(observation), -1, 1).astype(np.float64)
        return action


def rollout(
    worlds: Sequence[World],
    seeds: Sequence[int],
    act: Callable[[Array, Sequence[int]], Array],
    history: int = 2,
    limit: int = LIMIT,
    watch: Callable[[int, World], None] | None = None,
) -> list[int | None]:
    """Run episodes in parallel worlds until each has succeeded or failed.

    Args:
        worlds: one an episode.
        seeds: one an episode.
        act: the last observations of the worlds that still run, shape (running, history, 39), oldest first, and their
            indices, to the actions to be executed, shape (running, steps, 4).
        history: observations given; before the first step that one is repeated.
        limit: steps after which an episode has failed.
        watch: called with index and world after each step.

    Returns:
        For each episode the number of steps it took to succeed, None if it failed.
    """
    seen = [[world.reset(seed)] * history for world, seed in zip(worlds, seeds, strict=True)]
    took: list[int | None] = [None] * len(worlds)
    running, done = list(range(len(worlds))), 0
    while running and done < limit:
        chunks = act(np.array([seen[i][-history:] for i in running]), running)
        for i, actions in zip(running, chunks, strict=True):
            for k, action in enumerate(actions[: limit - done]):
                observation, success = worlds[i].step(action)
                seen[i] = [*seen[i][1 - history :], observation] if history > 1 else [observation]
                if watch is not None:
                    watch(i, worlds[i])
                if success:
                    took[i] = done + k + 1
                    break
        done += chunks.shape[1]
        running = [i for i in running if took[i] is None]
    return took
