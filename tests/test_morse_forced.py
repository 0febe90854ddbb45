"""Does Dash run where Dot knows nothing, is that counted, and is it said where nothing else ran?"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
)
from torch import Tensor

from diffaccel.morse import MorseReport
from diffaccel.morse.trajectory import ARGUMENTS, CONDITIONING, FIRST, GAP, GUIDANCE, SHAPE, TIME
from tests import tiny
from tests.morse_toys import TEXT, Dot, Loop, ddim, start, toy_dash, with_dot

POOLED = torch.zeros(2, dtype=torch.long)


def forced(given: Any, steps: int = 9, **options: Any) -> tuple[dict[str, int], MorseReport]:
    pipe = Loop(toy_dash(), ddim())
    with_dot(pipe, **options)
    pipe(start(), steps=steps, given=given)
    report = pipe.acceleration.report()  # type: ignore[attr-defined]
    assert report.dash + report.dot == sum(len(given(step)) for step in range(steps))
    return dict(report.forced), report


def test_nothing_is_forced_where_nothing_changes() -> None:
    """Also not by conditioning that is made anew at every call, with the same values."""
    same = {"encoder_hidden_states": TEXT, "class_labels": POOLED}
    assert forced(lambda step: [same])[0] == {}
    assert forced(lambda step: [{name: value.clone() for name, value in same.items()}])[0] == {}


def test_the_first_call_of_a_branch() -> None:
    """A branch that begins at a Dot step: guidance in an interval."""
    other = torch.zeros(2, 6, 24)
    both = [{"encoder_hidden_states": TEXT}, {"encoder_hidden_states": other}]
    reasons, report = forced(lambda step: both if step >= 4 else both[:1])
    assert reasons == {FIRST: 1}
    assert (report.dash, report.dot) == (3 + 2, 6 + 3)


def test_changed_conditioning() -> None:
    other = POOLED + 1
    same = {"encoder_hidden_states": TEXT}
    assert forced(lambda step: [{**same, "class_labels": POOLED if step < 4 else other}])[0] == {CONDITIONING: 1}
    assert forced(lambda step: [{**same, "class_labels": POOLED} if step < 4 else same])[0] == {CONDITIONING: 1}


def test_conditioning_that_is_written_into() -> None:
    labels = torch.zeros(2, dtype=torch.long)

    def given(step: int) -> list[dict[str, Any]]:
        if step == 4 and not labels.any():
            labels.add_(1)
        return [{"encoder_hidden_states": TEXT, "class_labels": labels}]

    assert forced(given)[0] == {CONDITIONING: 1}


def test_arguments_only_dash_takes() -> None:
    """A ControlNet for the first half of the run; where it ends Dash runs once more, for what it said was with it."""
    more = {"down_block_additional_residuals": [torch.ones(2, 4, 8, 8)]}
    reasons, report = forced(lambda step: [{"encoder_hidden_states": TEXT} | (more if step < 4 else {})])
    assert reasons == {ARGUMENTS: 2, CONDITIONING: 1}
    assert report.dash == 3 + 3


def test_another_shape_in_mid_run() -> None:
    """Guidance by halves of one batch, switched off by a callback."""
    pipe = tiny.stable_diffusion()
    pipe.scheduler = ddim()

    def off(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            pipe._guidance_scale = 1.0
            return {"prompt_embeds": given["prompt_embeds"].chunk(2)[-1]}
        return {}

    run = {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with_dot(pipe)
    tiny.run_unet(pipe, batch=2, steps=9, guidance=True, **run)
    report = pipe.acceleration.report()
    # The tensor of the prompt is another one, so this is a branch of its own.
    assert report.forced in ({FIRST: 1}, {SHAPE: 1})
    assert (report.dash, report.dot) == (4, 5)

    pipe.acceleration.remove()
    with_dot(pipe, Dot(guided=True), guided=4.0)
    tiny.run_unet(pipe, batch=2, steps=9, guidance=True, **run)
    assert pipe.acceleration.report().forced == {GUIDANCE: 4}  # nothing guided is left to correct


def test_another_shape_of_the_same_branch() -> None:
    pipe = Loop(toy_dash(), ddim())
    with_dot(pipe)
    real = pipe.scheduler.step

    def step(z: Tensor, t: Any, x: Tensor, **more: Any) -> Any:
        found = real(z, t, x, **more)
        return (found[0][..., :4],) if x.shape[-1] == 8 and len(pipe.seen) == 3 else found

    pipe.scheduler.step = step
    pipe(start(), steps=9)
    assert pipe.acceleration.report().forced == {SHAPE: 1}  # type: ignore[attr-defined]


def test_a_gap_above_the_longest() -> None:
    """Nine steps are 111 apart: with 150 as the longest gap, every second of two Dot steps becomes Dash."""
    reasons, report = forced(lambda step: [{}], max_gap=150)
    assert reasons == {GAP: 3}
    assert (report.dash, report.dot) == (6, 3)


def test_times_that_do_not_fall() -> None:
    """An inverting sampler goes from pictures to noise, which no Dot was trained for."""

    class Upwards(DDIMScheduler):
        def set_timesteps(self, num_inference_steps: int) -> None:
            super().set_timesteps(num_inference_steps)
            self.timesteps = self.timesteps.flip(0)

    pipe = Loop(toy_dash(), Upwards())
    with_dot(pipe)
    pipe(start(), steps=6)
    assert pipe.acceleration.report().forced == {TIME: 4}  # type: ignore[attr-defined]


def test_a_run_of_dash_alone_says_so(caplog: pytest.LogCaptureFixture) -> None:
    more = {"down_block_additional_residuals": [torch.ones(2, 4, 8, 8)]}
    with caplog.at_level(logging.WARNING, "diffaccel"):
        forced(lambda step: [{}])
        assert not caplog.records
        forced(lambda step: [more])
    [record] = caplog.records
    assert "nothing was accelerated" in record.message
    assert f"{ARGUMENTS} (6)" in record.message


def test_calls_beside_the_branches_are_passed_through() -> None:
    """SD3's skip-layer guidance is a third call of the network; what Dash says there is of no branch."""
    network = toy_dash()
    pipe = Loop(network, ddim())
    dot = with_dot(pipe)
    aside = {"encoder_hidden_states": torch.zeros(2, 6, 24), "skip_layers": [1]}
    pipe(start(), given=lambda step: [{"encoder_hidden_states": TEXT}, aside])
    assert (network.calls, len(dot.asked)) == (2 + 6, 4)
    assert pipe.acceleration.report().forced == {}  # type: ignore[attr-defined]


def test_guided_dots_need_both_halves_in_one_batch() -> None:
    pipe = tiny.stable_diffusion()
    with_dot(pipe, Dot(guided=True), guided=4.0)
    with pytest.raises(ValueError, match="guidance_scale=1"):
        tiny.run_unet(pipe, batch=2, steps=6)
    pipe.acceleration.remove()
    with_dot(pipe, Dot(guided=True), guided=1.0)
    with pytest.raises(ValueError, match="halves of one batch"):
        tiny.run_unet(pipe, batch=2, steps=6)
