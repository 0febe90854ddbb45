"""Do Dash and Dot run where they should, with what they should, and is all of it reported?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
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
from tests import tiny
from tests.morse_toys import Dash, Dot, Loop, ddim, difference, of_oracle, start, toy_dash, with_dot

ORACLE = json.loads((Path(__file__).parent / "oracles" / "morse.json").read_text())
CASE = {case["id"]: case for case in ORACLE["cases"]}
NEAR = {"rel": ORACLE["tolerance"]["diffusers_relative"], "abs": ORACLE["tolerance"]["diffusers_absolute"]}


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
