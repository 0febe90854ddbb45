"""Is every run of Morse as if it were the first, and is nothing left behind, however networks are hosted?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

from diffaccel.morse.trajectory import FIRST
from tests import tiny
from tests.morse_toys import TEXT, Dash, Dot, Loop, ddim, of_oracle, start, toy_dash, with_dot


def test_two_runs_are_equal_and_a_failed_one_leaves_the_next_right() -> None:
    pipe = tiny.stable_diffusion()
    with_dot(pipe, Dot(of_oracle))
    expected = tiny.run_unet(pipe, batch=2, steps=6, guidance=True)
    assert torch.equal(tiny.run_unet(pipe, batch=2, steps=6, guidance=True), expected)

    def fail(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise KeyboardInterrupt
        return given

    with pytest.raises(KeyboardInterrupt):
        tiny.run_unet(pipe, batch=2, steps=6, guidance=True, callback_on_step_end=fail)
    assert torch.equal(tiny.run_unet(pipe, batch=2, steps=6, guidance=True), expected)


def test_a_dot_that_fails_leaves_the_next_run_right() -> None:
    pipe, fails = Loop(toy_dash(), ddim()), [False]

    def answer(*asked: Tensor) -> Tensor:
        if fails[0]:
            raise RuntimeError("no memory")
        return of_oracle(*asked)

    with_dot(pipe, Dot(answer))
    expected = pipe(start())
    fails[0] = True
    with pytest.raises(RuntimeError, match="no memory"):
        pipe(start())
    fails[0] = False
    assert torch.equal(pipe(start()), expected)
    assert pipe.acceleration.report().dash == 2  # type: ignore[attr-defined]


def test_a_branch_that_begins_late_knows_nothing_of_a_failed_run() -> None:
    pipe, both = Loop(toy_dash(), ddim()), [{"encoder_hidden_states": torch.zeros(2, 6, 24) + i} for i in range(2)]
    with_dot(pipe, Dot(of_oracle))

    def failing(step: int) -> list[dict[str, Any]]:
        return both if step < 2 else [1 / 0]

    def late(step: int) -> list[dict[str, Any]]:
        return both if step >= 4 else both[:1]

    with pytest.raises(ZeroDivisionError):
        pipe(2 * start(), steps=9, given=failing)
    pipe(start(), steps=9, given=late)
    assert pipe.acceleration.report().forced == {FIRST: 1}  # type: ignore[attr-defined]


def test_removal_leaves_no_trace() -> None:
    pipe = tiny.flux()
    owners = (pipe, pipe.scheduler, *pipe.transformer.modules())
    expected, before = tiny.run_flux(pipe), [dict(vars(owner)) for owner in owners]
    with_dot(pipe)
    tiny.run_flux(pipe)
    wrapper = pipe.transformer.forward
    pipe.acceleration.remove()
    states = [dict(vars(owner)) for owner in owners]
    for state in (before[1], states[1]):  # what a scheduler notes of its last run
        for name in ("timesteps", "sigmas", "_step_index", "_begin_index", "num_inference_steps"):
            state.pop(name, None)
    assert states == before
    assert torch.equal(tiny.run_flux(pipe), expected)
    # Somebody who wrapped ours in turn may go on calling it.
    pipe.transformer.forward = lambda *args, **kwargs: wrapper(*args, **kwargs)
    assert torch.equal(tiny.run_flux(pipe), expected)


@pytest.mark.parametrize("way", ["network.compile", "torch.compile"])
def test_compiled_networks(way: str) -> None:
    expected_pipe, pipe = tiny.stable_diffusion(), tiny.stable_diffusion()
    with_dot(expected_pipe, Dot(of_oracle))
    expected = tiny.run_unet(expected_pipe, steps=6)
    if way == "network.compile":
        pipe.unet.compile(backend="eager")
    else:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    before = vars(pipe.unet).get("_compiled_call_impl")
    with_dot(pipe, Dot(of_oracle))
    assert torch.allclose(tiny.run_unet(pipe, steps=6), expected, rtol=1e-5, atol=1e-5)
    assert pipe.acceleration.report().dash == 2
    pipe.acceleration.remove()
    assert vars(pipe.unet).get("_compiled_call_impl") is before


def test_compiling_afterwards_is_an_error() -> None:
    pipe = tiny.stable_diffusion()
    with_dot(pipe)
    pipe.unet.compile(backend="eager")
    with pytest.raises(RuntimeError, match="compiled after it was accelerated"):
        tiny.run_unet(pipe, steps=6)


def test_weights_that_are_offloaded_as_a_whole_stay_where_they_are_at_dot_steps() -> None:
    """Whichever came first, the offloading or the acceleration; its hook counts the uploads."""
    pipe = tiny.stable_diffusion()
    with_dot(pipe, Dot(of_oracle))
    expected = tiny.run_unet(pipe, steps=6)
    pipe.acceleration.remove()

    class Upload(ModelHook):
        execution_device, count = torch.device("cpu"), 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return args, kwargs

    add_hook_to_module(pipe.unet, hook := Upload())
    with_dot(pipe, Dot(of_oracle))
    assert torch.equal(tiny.run_unet(pipe, steps=6), expected)
    assert hook.count == 2
    pipe.acceleration.remove()
    remove_hook_from_module(pipe.unet)
    with_dot(pipe, Dot(of_oracle))
    add_hook_to_module(pipe.unet, Upload())
    assert torch.equal(tiny.run_unet(pipe, steps=6), expected)


def test_inference_mode() -> None:
    pipe = Loop(toy_dash(), ddim())
    with_dot(pipe, Dot(of_oracle))
    given = [{"encoder_hidden_states": TEXT}]
    expected = pipe(start(), given=lambda step: given)
    with torch.inference_mode():
        text = [{"encoder_hidden_states": TEXT * 1}]
        assert torch.equal(pipe(start(), given=lambda step: text), expected)
    assert pipe.acceleration.report().forced == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    network = Dash(lambda x, t: 0.8 * x)
    pipe = Loop(network, ddim(prediction_type="v_prediction"))
    with_dot(pipe, Dot(lambda x, t, x_s, k_s, t_s: 0.1 * k_s.float()))  # a Dot may answer in another dtype
    pipe(start().to(dtype))
    assert {z[0].dtype for _, _, z, _ in pipe.seen} == {dtype}
