"""Does the closed loop run: worlds that begin where their seed says, experts and policies that get the task done?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from diffaccel import accelerate_pipeline
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.metaworld import demonstrations, train
from diffaccel.pipelines.bundled.metaworld.demonstrations import AFTER, record
from diffaccel.pipelines.bundled.metaworld.environment import ACTION, LIMIT, OBSERVATION, TASKS, Array, World, rollout
from diffaccel.pipelines.bundled.metaworld.player import Player
from diffaccel.pipelines.policies.checkpoints import published_scheduler
from diffaccel.pipelines.policy import PolicyPipeline

pytest.importorskip("metaworld", reason="simulated worlds need metaworld: pip install 'diffaccel[policy]'")


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [World("drawer-open") for _ in range(3)]


@pytest.fixture
def drawer() -> PolicyPipeline:
    return with_ddim(bundled.policy("drawer-open"))


def with_ddim(pipe: PolicyPipeline) -> PolicyPipeline:
    pipe.register_modules(scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
    return pipe


def episode(world: World, seed: int, steps: int) -> Array:
    """Observations of an expert's episode."""
    seen = [world.reset(seed)]
    for _ in range(steps):
        seen.append(world.step(world.expert(seen[-1]))[0])
    return np.array(seen)


def test_an_episode_depends_on_its_seed_alone(worlds: list[World]) -> None:
    used, fresh, _ = worlds
    first = episode(used, 5, 60)
    episode(used, 9, 100)  # what the world did before is forgotten
    assert np.array_equal(episode(used, 5, 60), first)
    assert np.array_equal(episode(fresh, 5, 60), first)
    assert first.shape == (61, OBSERVATION)
    assert not np.array_equal(used.reset(6), first[0])


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_gets_the_task_done(task: str) -> None:
    world = World(task)
    for seed in range(3):
        [took] = rollout([world], [seed], lambda seen, _: world.expert(seen[0, -1])[None, None])
        assert took is not None
        assert 20 < took < LIMIT


def test_a_task_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no task 'drawer-shut'.*drawer-close, drawer-open"):
        World("drawer-shut")


class Still:
    """Does nothing, and remembers what it was shown."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seen, self.asked = steps, list[Array](), list[list[int]]()

    def __call__(self, seen: Array, running: Sequence[int]) -> Array:
        self.seen.append(seen)
        self.asked.append(list(running))
        return np.zeros((len(running), self.steps, ACTION))


def test_an_episode_without_success_ends_at_the_limit(worlds: list[World]) -> None:
    still, watched = Still(steps=8), list[int]()
    took = rollout(worlds[:2], [0, 1], still, history=3, limit=20, watch=lambda i, _: watched.append(i))
    assert took == [None, None]
    assert [watched.count(i) for i in (0, 1)] == [20, 20]  # the third chunk is cut off
    assert still.asked == [[0, 1]] * 3


def test_observations_given_are_the_last_ones_and_the_first_is_repeated(worlds: list[World]) -> None:
    still = Still(steps=2)
    rollout(worlds[:1], [4], still, history=3, limit=4)
    seen = [worlds[0].reset(4), *(worlds[0].step(np.zeros(ACTION))[0] for _ in range(2))]
    assert np.array_equal(still.seen[0][0], [seen[0]] * 3)
    assert np.array_equal(still.seen[1][0], seen)


def test_an_episode_is_left_alone_after_success(worlds: list[World]) -> None:
    watched = list[int]()

    def act(seen: Array, running: Sequence[int]) -> Array:
        return np.array([[np.zeros(ACTION) if i else worlds[0].expert(seen[0, -1])] for i in running])

    took = rollout(worlds[:2], [0, 1], act, limit=120, watch=lambda i, _: watched.append(i))
    assert took[0] is not None
    assert took[1] is None
    assert [watched.count(i) for i in (0, 1)] == [took[0], 120]


def test_what_a_player_does_in_a_world_does_not_depend_on_the_others(drawer: PolicyPipeline) -> None:
    seen = bundled.policy_observations("drawer-open")[:3].double().numpy()
    together, alone = Player(drawer, [7, 8, 9], 5), Player(drawer, [7, 8, 9], 5)
    expected = together(seen, [0, 1, 2])
    assert np.allclose(alone(seen[2:], [2]), expected[2:], atol=1e-5)
    assert np.allclose(alone(seen[:1], [0]), expected[:1], atol=1e-5)
    assert not np.allclose(alone(seen[:1], [0]), expected[:1], atol=1e-5)  # the noise went on


@pytest.mark.parametrize("task", TASKS)
def test_the_bundled_policy_succeeds_from_starts_it_has_not_seen(task: str) -> None:
    seeds = range(3)
    took = rollout([World(task) for _ in seeds], seeds, Player(with_ddim(bundled.policy(task)), seeds, 10))
    assert None not in took


def test_a_policy_that_computes_everything_is_the_full_one_in_closed_loop(
    worlds: list[World], drawer: PolicyPipeline
) -> None:
    seeds = (0, 3, 4)  # they are done after 96, 89 and 84 steps

    def observed() -> list[Array]:
        seen: list[Array] = []
        player = Player(drawer, seeds, 10)

        def act(observations: Array, running: Sequence[int]) -> Array:
            seen.append(observations)
            return player(observations, running)

        assert None not in rollout(worlds, seeds, act)
        return seen

    full = observed()
    accelerate_pipeline(drawer, "uniform", updates=10)
    cached = observed()
    assert len({len(seen) for seen in full}) == 2  # not all episodes need the last decision
    assert all(np.array_equal(a, b) for a, b in zip(full, cached, strict=True))


def test_windows_begin_at_the_oldest_observation_and_repeat_the_ends_of_an_episode() -> None:
    observations, actions = np.arange(4.0)[:, None], 10 * np.arange(4.0)[:, None]
    cut = list(demonstrations._cut(observations, actions, history=2, horizon=3))
    assert [(seen[:, 0].tolist(), done[:, 0].tolist()) for seen, done in cut] == [
        ([0, 0], [0, 0, 10]),
        ([0, 1], [0, 10, 20]),
        ([1, 2], [10, 20, 30]),
        ([2, 3], [20, 30, 30]),
    ]


def test_demonstrations_show_what_the_expert_would_do_though_its_hand_is_pushed() -> None:
    windows, world = record("drawer-open", 2, history=2, horizon=4, seed=3, progress=False), World("drawer-open")
    assert windows.episodes == 2
    assert windows.observations.shape[1:] == (2, OBSERVATION)
    assert windows.actions.shape == (len(windows.observations), 4, ACTION)
    newest = windows.observations[:, -1].double().numpy()
    expected = np.array([world.expert(observation) for observation in newest])
    assert np.allclose(windows.actions[:, 1], expected, atol=1e-4)  # after float32
    unpushed = episode(world, demonstrations.FIRST_SEED, 30)
    assert not np.allclose(newest[:31], unpushed, atol=1e-3)


def test_a_demonstration_goes_on_for_a_while_after_success(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstrations, "PUSH", 0.0)
    found = demonstrations.demonstration(worlds[0], 0, np.random.default_rng(0))
    assert found is not None
    [took] = rollout(worlds[:1], [0], lambda seen, _: worlds[0].expert(seen[0, -1])[None, None])
    assert took is not None
    assert len(found[0]) == took + AFTER


def test_a_demonstration_that_fails_is_none(worlds: list[World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstrations, "LIMIT", 10)
    assert demonstrations.demonstration(worlds[0], 0, np.random.default_rng(0)) is None


def test_a_training_ends_in_a_policy_that_loads(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "DEMONSTRATIONS", 1)
    monkeypatch.setattr(train, "TRIALS", 1)
    made = train.train("drawer-open", tmp_path, train.Recipe(minutes=0.01, batch=4, drop=0.0))
    loaded = PolicyPipeline.from_pretrained(tmp_path / "policy", local_files_only=True)
    seen = torch.load(tmp_path / "demonstrations.pt", weights_only=True)[0][:1]
    actions = [pipe(seen, 2, torch.Generator().manual_seed(0)).actions for pipe in (made, loaded)]
    assert torch.equal(*actions)
    assert (loaded.config.horizon, loaded.config.n_obs_steps, loaded.config.n_action_steps) == (16, 2, 8)


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers_take_over_the_steps_of_the_training(kind: Any) -> None:
    # Given by position, 100 would be lost: policies would be asked at steps up to 1000.
    assert kind.from_config(published_scheduler().config).config.num_train_timesteps == 100
