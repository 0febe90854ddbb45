"""Does a clock tell steps, branches and runs apart, by timesteps alone and by a scheduler?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffaccel.clock import Clock, PipelineClock
from tests import tiny


def positions(clock: Clock, times: list[Any]) -> list[tuple[int, int, str]]:
    moments = [clock.locate(time) for time in times]
    return [(moment.run, moment.step, moment.branch) for moment in moments]


@pytest.mark.parametrize("sign", [1, -1], ids=["falling", "rising"])
@pytest.mark.parametrize("kind", [float, torch.tensor, lambda time: torch.tensor([time, time])])
def test_timesteps_alone(sign: int, kind: Any) -> None:
    times = [kind(sign * float(time)) for time in (9, 9, 5, 5, 2, 2, 9, 5)]
    assert positions(Clock(3), times) == [
        (0, 0, "call 0"),
        (0, 0, "call 1"),
        (0, 1, "call 0"),
        (0, 1, "call 1"),
        (0, 2, "call 0"),
        (0, 2, "call 1"),
        (1, 0, "call 0"),
        (1, 1, "call 0"),
    ]


def test_an_interrupted_run_is_over() -> None:
    clock = Clock(3)
    clock.locate(9.0)
    clock.interrupt()
    assert positions(clock, [9.0, 5.0]) == [(1, 0, "call 0"), (1, 1, "call 0")]


def test_branches_by_the_names_the_pipeline_gives() -> None:
    network, clock = tiny.flux_transformer(), Clock(2)
    clock.attach(network)
    seen = []
    for time in (9.0, 5.0):
        for name in ("cond", "uncond"):
            with network.cache_context(name):
                seen.append(clock.locate(time).branch)
    assert seen == ["cond", "uncond"] * 2
    clock.detach()
    assert "cache_context" not in vars(network)


def device_time(value: float) -> Tensor:
    """A timestep whose value cannot be read: a clock that tries to would wait for the device."""
    return torch.tensor(value, device="meta")


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by conditioning"])
def test_a_scheduler_is_followed_without_reading_timesteps(named: bool) -> None:
    given = {name: torch.zeros(1) for name in ("cond", "uncond")}
    names = list(given) if named else ["call 0", "call 1"]
    scheduler = FlowMatchEulerDiscreteScheduler()
    clock = PipelineClock(SimpleNamespace(scheduler=scheduler))
    x = torch.zeros(1)
    seen = []
    for run in range(2):
        scheduler.set_timesteps(3)
        scheduler.set_begin_index(0)
        for time in scheduler.timesteps:
            # Branches that can be told, so that no second call has to be told from another loop's next step.
            for name, tensor in given.items():
                clock._context = name if named else None
                moment = clock.locate(device_time(float(time)), None if named else tensor)
                seen.append((moment.run - run, moment.steps, moment.step, moment.branch))
            scheduler.step(x, time, x)
    assert seen == [(0, 3, step, name) for step in range(3) for name in names] * 2


def test_a_run_that_was_left_starts_over() -> None:
    scheduler = DDIMScheduler()
    clock = PipelineClock(SimpleNamespace(scheduler=scheduler))
    for left_after in (2, 5):
        scheduler.set_timesteps(5)
        steps = []
        for time in scheduler.timesteps[:left_after]:
            steps.append(clock.locate(time).step)
            scheduler.step(torch.zeros(1, 1), time, torch.zeros(1, 1))
        assert steps == list(range(left_after))


def test_finishing_is_announced_once_a_run() -> None:
    scheduler = DDIMScheduler()
    clock = PipelineClock(SimpleNamespace(scheduler=scheduler))
    finished: list[int] = []
    clock.finished.append(lambda: finished.append(clock.run))
    for _ in range(2):
        scheduler.set_timesteps(4)
        for time in scheduler.timesteps:
            clock.locate(time)
            scheduler.step(torch.zeros(1, 1), time, torch.zeros(1, 1))
    assert finished == [0, 1]


def test_no_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Clock(0)
