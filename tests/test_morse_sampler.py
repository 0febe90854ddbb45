"""Does the session run Dash and Dot where it should, with what it should, and leave everything else as it was?"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from diffaccel import accelerate_pipeline
from diffaccel.morse import MorseDot, MorseReport, Pair
from diffaccel.morse.coordinates import Coordinates
from diffaccel.morse.trajectory import ARGUMENTS, CONDITIONING, FIRST, GAP, GUIDANCE, SHAPE, TIME
from tests import tiny
from tests.morse_toys import Dash, Dot, Loop, of_oracle, toy_dash, with_dot

ORACLE = json.loads((Path(__file__).parent / "oracles" / "morse.json").read_text())
CASE = {case["id"]: case for case in ORACLE["cases"]}
NEAR = {"rel": ORACLE["tolerance"]["diffusers_relative"], "abs": ORACLE["tolerance"]["diffusers_absolute"]}


def ddim(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(**{"timestep_spacing": "trailing", "clip_sample": False, **config})


def start(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


# What it computes


@pytest.mark.parametrize("name", ["diffusers_ddim", "diffusers_dpmpp2m"])
def test_traces_of_the_oracles_through_schedulers_of_diffusers(name: str) -> None:
    case = CASE[name]
    setting = {key: value for key, value in case["setting"].items() if key != "scheduler"}
    kind = {kind.__name__: kind for kind in (DDIMScheduler, DPMSolverMultistepScheduler)}[case["setting"]["scheduler"]]
    pipe = Loop(toy_dash(), kind(trained_betas=torch.linspace(1e-4, 0.02, 1000).tolist(), **setting))
    with_dot(pipe, Dot(of_oracle, scheduler=kind.__name__))
    pipe(torch.tensor([[case["x_start"]]]))
    found = [(t, x.item(), z[0].item(), x_next.item()) for t, x, z, x_next in pipe.seen]
    for row, expected in zip(found, case["rows"], strict=True):
        assert row == pytest.approx(expected, **NEAR)


def test_the_trace_of_flow_matching() -> None:
    case = CASE["trace_flow"]
    pipe = Loop(Dash(lambda x, t: 0.6 * x - 0.2 * t / 1000), FlowMatchEulerDiscreteScheduler())
    with_dot(pipe, Dot(of_oracle), dots_per_dash=1)
    pipe(torch.tensor([case["x_start"]]), sigmas=case["times"][:-1])
    for (_, x, v, x_next), row in zip(pipe.seen, case["rows"], strict=True):
        assert [x.item(), v[0].item(), x_next.item()] == pytest.approx([*row["x"], *row["v"], *row["x_next"]], **NEAR)


@pytest.mark.parametrize("name", ["guidance_branchwise", "guidance_guided"])
def test_guidance_of_the_oracles(name: str) -> None:
    case = CASE[name]
    said = torch.tensor([[case["uncond"]], [case["cond"]]])
    guided = case["mode"] == "guided"
    pipe = Loop(Dash(lambda x, t: said.clone()), ddim())
    pipe.guidance_scale = case["w"]  # type: ignore[attr-defined]
    residual = torch.tensor(case["residual"])[:, None]
    with_dot(pipe, Dot(lambda *_: residual, guided=guided), guided=case["w"] if guided else None)
    pipe(torch.ones(2, 1), steps=3)
    assert torch.equal(pipe.seen[0][2][0], said)  # a Dash step, whose branches stay apart
    uncond, cond = returned = pipe.seen[1][2][0].flatten()
    assert returned.tolist() == pytest.approx(case["returned"])
    assert (uncond + case["w"] * (cond - uncond)).item() == pytest.approx(case["guided_after"])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("guidance", [False, True])
def test_a_dot_of_zero_is_the_plain_sampler_on_dash_steps(kind: Any, prediction: str, guidance: bool) -> None:
    """A network that predicts anything but epsilon is where keeping the wrong thing would show: .14 for v."""
    pipe = tiny.stable_diffusion()
    more = {"clip_sample": False} if kind is DDIMScheduler else {}
    pipe.scheduler = kind(timestep_spacing="trailing", prediction_type=prediction, **more)
    plain = tiny.run_unet(pipe, batch=2, steps=5, guidance=guidance)
    dot = with_dot(pipe, dots_per_dash=3)
    found = tiny.run_unet(pipe, batch=2, steps=20, guidance=guidance)
    assert difference(found, plain) < 2e-5
    assert (pipe.acceleration.report().dash, len(dot.asked)) == (5, 15)


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("family", ["flux", "dit", "sdxl"])
def test_a_dot_of_zero_in_other_pipelines(family: str, guidance: bool) -> None:
    """Flux calls its network once a branch, and the DiT learns variances."""
    made = tiny.FAMILIES[family]
    pipe = made.make()
    if family != "flux":
        pipe.scheduler = ddim()
    plain = made.run(pipe, batch=2, steps=4, guidance=guidance)
    dot = with_dot(pipe, dots_per_dash=1)
    assert difference(made.run(pipe, batch=2, steps=8, guidance=guidance), plain) < 2e-5
    report = pipe.acceleration.report()
    calls = 2 if family == "flux" and guidance else 1
    assert (report.dash, report.dot) == (4 * calls, 4 * calls) == (4 * calls, len(dot.asked))
    assert report.forced == {}


@pytest.mark.parametrize("kind", ["shared", "independent"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_new_dot_of_each_family_says_nothing_yet(family: str, kind: str) -> None:
    """Real Dots take what real pipelines give their networks, both branches of guidance."""
    made = tiny.FAMILIES[family]
    pipe = made.make()
    if family != "flux":
        pipe.scheduler = ddim()
    plain = made.run(pipe, batch=2, steps=4, guidance=True)
    dot = MorseDot.of(made.denoiser(pipe), kind=kind, m=1, widths=(8, 16), rank=2 if kind == "shared" else 0)
    accelerate_pipeline(pipe, "morse", dot=dot, dots_per_dash=1)
    assert difference(made.run(pipe, batch=2, steps=8, guidance=True), plain) < 2e-5
    assert pipe.acceleration.report().forced == {}
    with torch.no_grad():
        for parameter in dot.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    assert difference(made.run(pipe, batch=2, steps=8, guidance=True), plain) > 1e-4


def test_guided_dots_are_asked_about_the_prompt_once() -> None:
    pipe = tiny.stable_diffusion()
    pipe.scheduler = ddim()
    plain = tiny.run_unet(pipe, batch=2, steps=4, guidance=True)
    dot = with_dot(pipe, Dot(guided=True), guided=4.0, dots_per_dash=1)
    assert difference(tiny.run_unet(pipe, batch=2, steps=8, guidance=True), plain) < 2e-5
    text = tiny._draw(2, {"latents": (4, 8, 8), "prompt_embeds": (tiny.TEXT_TOKENS, tiny.TEXT_WIDTH)}, 0, None)
    for asked in dot.asked:
        assert len(asked.x) == len(asked.x_s) == len(asked.k_s) == len(asked.t) == 2
        assert torch.equal(asked.conditioning["encoder_hidden_states"], text["prompt_embeds"])


def test_a_dot_that_knows_dash_gives_dashs_own_run() -> None:
    """Residuals that are right lead to what Dash would have made of every step, in whatever coordinates."""
    network = tiny.unet().double()
    text = torch.randn(2, tiny.TEXT_TOKENS, tiny.TEXT_WIDTH, dtype=torch.float64)
    scheduler = ddim(prediction_type="v_prediction")
    coordinates = Coordinates.of(scheduler)

    def answer(x: Tensor, t: Tensor, x_s: Tensor, k_s: Tensor, t_s: Tensor) -> Tensor:
        z = type(network).forward(network, x, t, text)[0]
        return coordinates.keep(z, x, t) - k_s

    pipe = Loop(network, scheduler)
    expected = pipe(start().double(), given=lambda step: [{"encoder_hidden_states": text}])
    with_dot(pipe, Dot(answer))
    found = pipe(start().double(), given=lambda step: [{"encoder_hidden_states": text}])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_base_taylor_is_the_line_through_two_dash_steps() -> None:
    outputs = iter([1.0, 2.0, 5.0])
    pipe = Loop(Dash(lambda x, t: torch.full_like(x, next(outputs))), ddim())
    with_dot(pipe, Dot(base="taylor"))
    pipe(start(), steps=9)
    found = [z[0].mean().item() for _, _, z, _ in pipe.seen]
    assert found == pytest.approx([1, 1, 1, 2, 2 + 1 / 3, 2 + 2 / 3, 5, 6, 7])


def test_learned_variances_are_those_of_the_last_dash_step() -> None:
    step = iter(range(9))

    def estimate(x: Tensor, t: Any) -> Tensor:
        return torch.cat([x, torch.full_like(x, next(step))], 1)

    pipe = Loop(Dash(estimate), ddim())
    dot = with_dot(pipe, Dot(lambda x, t, x_s, k_s, t_s: torch.ones_like(k_s)))
    pipe(start(), combine=lambda outputs: outputs[0].chunk(2, 1)[0])
    variances = [z[0][:, 4:].mean().item() for _, _, z, _ in pipe.seen]
    assert variances == [0, 0, 0, 1, 1, 1]
    assert all(asked.k_s.shape == (2, 4, 8, 8) for asked in dot.asked)
    assert torch.allclose(pipe.seen[1][2][0][:, :4], pipe.seen[0][2][0][:, :4] + 1)


def test_samples_may_have_channels_beside_those_of_the_estimate() -> None:
    """Inpainting: the mask and the masked picture are part of the sample, not of what is predicted."""
    network = Dash(lambda x, t: x[:, :4] * 0.9)
    pipe = Loop(network, ddim(prediction_type="v_prediction"))
    real = pipe.scheduler.scale_model_input
    pipe.scheduler.scale_model_input = lambda x, t: torch.cat([real(x, t), torch.full((2, 5, 8, 8), 7.0)], 1)
    plain = pipe(start(), steps=2)
    dot = with_dot(pipe, dots_per_dash=3)
    assert difference(pipe(start(), steps=8), plain) < 1e-5
    assert (dot.asked[0].x.shape[1], dot.asked[0].k_s.shape[1]) == (9, 4)


@pytest.mark.parametrize(
    "form", [lambda z: z, lambda z: (z,), lambda z: (z, "more"), lambda z: UNet2DConditionOutput(sample=z)]
)
def test_outputs_have_the_form_dash_gave_them(form: Any) -> None:
    pipe = Loop(toy_dash(form=form), ddim())
    with_dot(pipe)
    pipe(start())
    dash, dot = pipe.seen[0][2], pipe.seen[1][2]
    assert type(dash) is type(dot)
    if isinstance(dash, tuple):
        assert dot[1:] == dash[1:]


def test_kept_tensors_are_copies() -> None:
    """Some loops write into their sample, and graphs into their output."""
    buffer = torch.zeros(2, 4, 8, 8)
    network = Dash(lambda x, t: buffer.copy_(0.5 * x))
    pipe = Loop(network, ddim())
    dot = with_dot(pipe, dots_per_dash=1)
    real = pipe.scheduler.step

    def step(z: Tensor, t: Any, x: Tensor, **more: Any) -> Any:
        found = real(z.clone(), t, x.clone(), **more)
        x.zero_()
        buffer.zero_()
        return found

    pipe.scheduler.step = step
    pipe(start(), steps=2)
    assert torch.equal(dot.asked[0].x_s, start())
    assert torch.equal(dot.asked[0].k_s, 0.5 * start())


# Runs


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


# Dash instead of Dot


TEXT, POOLED = torch.ones(2, 6, 24), torch.zeros(2, dtype=torch.long)


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


# The teacher, and the report


@pytest.mark.parametrize("guided", [False, True])
def test_a_teacher_hears_dash_at_every_dot_step_and_changes_nothing(guided: bool) -> None:
    pipe, found = tiny.stable_diffusion(), list[Pair]()
    pipe.scheduler = ddim(prediction_type="v_prediction")
    with_dot(pipe, Dot(of_oracle, guided=guided), guided=4.0 if guided else None)
    expected = tiny.run_unet(pipe, batch=2, steps=6, guidance=True)
    pipe.acceleration.session().teacher = found.append
    assert torch.equal(tiny.run_unet(pipe, batch=2, steps=6, guidance=True), expected)
    assert len(found) == 4
    coordinates, size = Coordinates.of(pipe.scheduler), 2 if guided else 4
    text = torch.cat([torch.zeros(2, 6, 24), torch.ones(2, 6, 24)])
    for pair in found:
        assert {len(part) for part in (pair.x, pair.t, pair.x_s, pair.k_s, pair.t_s, pair.base, pair.k)} == {size}
        assert torch.equal(pair.base, pair.k_s)
        assert (pair.t < pair.t_s).all()
        text = pair.conditioning["encoder_hidden_states"]
        assert len(text) == size
        if not guided:
            z = type(pipe.unet).forward(pipe.unet, pair.x, pair.t, text)[0]
            assert torch.allclose(pair.k, coordinates.keep(z, pair.x, pair.t), rtol=1e-4, atol=1e-5)


def test_the_report_counts_calls_and_reckons_latency() -> None:
    pipe = tiny.flux()
    with_dot(pipe, ratio=4.0)
    before = pipe.acceleration.report()
    assert before.plan is None
    assert "no run yet" in str(before)
    tiny.run_flux(pipe, steps=9, guidance=True)
    report = pipe.acceleration.report()
    assert isinstance(report, MorseReport)
    assert (report.dash, report.dot, report.steps) == (6, 12, 9)
    assert report.sites[0].computed == {"cond": 3, "uncond": 3}
    assert report.sites[0].skipped == {"cond": 6, "uncond": 6}
    assert report.lsd_planned == 3 + 6 / 4
    assert report.ratio is not None
    assert report.lsd == pytest.approx(3 + 6 / report.ratio)
    assert report.ratio > 1  # of a Dot that does nothing
    assert [len(report.seconds[kind]) for kind in ("computed", "skipped")] == [6, 12]
    assert report.memory > 0
    assert "6 calls of Dash, 12 of Dot" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["plan"] == [[0, 3, 6]]


def test_networks_without_one_tensor_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, sample: Tensor, timestep: Any, return_dict: bool = True) -> Any:
            return ([sample, sample],)

    pipe = Loop(Two(), ddim())
    with_dot(pipe)
    with pytest.raises(ValueError, match="output is one tensor"):
        pipe(start())


def test_a_dot_of_another_shape_is_told() -> None:
    pipe = Loop(toy_dash(), ddim())
    with_dot(pipe, Dot(lambda x, *_: x[:1]))
    with pytest.raises(ValueError, match=r"Dot returned \(1, 4, 8, 8\)"):
        pipe(start())
