"""Is what is kept of Dash's estimate given back as the network would, whatever it predicts and wherever it is asked?"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffaccel.morse.coordinates import Coordinates, is_flow

ORACLE = json.loads((Path(__file__).parent / "oracles" / "morse.json").read_text())
CASE = {case["id"]: case for case in ORACLE["cases"]}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def published(prediction: str = "epsilon") -> Any:
    """A scheduler with the schedule of the oracles, in float64."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    config = SimpleNamespace(prediction_type=prediction)
    return SimpleNamespace(alphas_cumprod=(1 - betas).cumprod(0), config=config)


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def near(value: Any) -> Any:
    return pytest.approx(value, rel=ORACLE["tolerance"]["float64_relative"], abs=1e-12)


def toy_dash(x: Tensor, t: float) -> Tensor:
    return 0.8 * x + 0.1 * t / 1000


def toy_dot(x: Tensor, x_s: Tensor, z_s: Tensor, t: float, t_s: float) -> Tensor:
    return 0.25 * (x - x_s) - 0.1 * (t_s - t) / 1000 + 0.02 * z_s


def test_substeps_land_where_the_jump_does() -> None:
    case, coordinates = CASE["zero_dot_ddim"], Coordinates.of(published())
    x, z, times = number(case["x"]), number(case["z"]), case["times"]
    assert coordinates.jump(z, x, times[0], times[-1]).item() == near(case["x_end"])
    for t, t_next in pairwise(times):
        x = coordinates.jump(z, x, t, t_next)
    assert x.item() == near(case["x_end"])


@pytest.mark.parametrize("name", ["trace_ddim", "trace_flow"])
def test_traces_of_the_oracles(name: str) -> None:
    case, flow = CASE[name], name == "trace_flow"
    coordinates = Coordinates.of(FlowMatchEulerDiscreteScheduler() if flow else published())
    time, estimate = ("sigma", "v") if flow else ("t", "z")
    x, x_s, k_s, t_s = (torch.tensor(case["x_start"], dtype=torch.float64),) * 3 + (0.0,)
    for row in case["rows"]:
        t = row[time]
        if row["kind"] == "D":
            z = 0.6 * x - 0.2 * t if flow else toy_dash(x, t)
            x_s, k_s, t_s = x, coordinates.keep(z, x, t), t
        else:
            scale = 1000 if flow else 1
            z = coordinates.output(k_s + toy_dot(x, x_s, k_s, scale * t, scale * t_s), x, t)
        assert z.tolist() == near(row[estimate])
        x = coordinates.jump(coordinates.keep(z, x, t), x, t, row[f"{time}_next"])
        assert x.tolist() == near(row["x_next"])


def test_euler_in_its_own_scale_is_ddim() -> None:
    case, coordinates = CASE["euler_is_ddim"], Coordinates.of(published())
    x_next = coordinates.jump(number(case["z"]), number(case["x"]), case["t"], case["s"])
    assert x_next.item() == near(case["x_next"])
    assert (x_next * (case["sigma_s"] ** 2 + 1) ** 0.5).item() == near(case["x_scaled_next"])


def test_v_is_kept_as_epsilon_and_made_anew() -> None:
    case, coordinates = CASE["v_prediction"], Coordinates.of(published("v_prediction"))
    start, middle, end = case["times"]
    x, v = number(case["x"]), number(case["v"])
    kept = coordinates.keep(v, x, start)
    assert kept.item() == near(case["eps"])
    x_mid = coordinates.jump(kept, x, start, middle)
    assert x_mid.item() == near(case["x_mid"])
    v_mid = coordinates.output(kept, x_mid, middle)
    assert v_mid.item() == near(case["v_at_mid"])
    x_end = coordinates.jump(coordinates.keep(v_mid, x_mid, middle), x_mid, middle, end)
    assert x_end.item() == near(case["x_end_single_jump"])
    assert coordinates.jump(kept, x, start, end).item() == near(case["x_end_single_jump"])
    wrong = coordinates.jump(coordinates.keep(v, x_mid, middle), x_mid, middle, end)
    assert wrong.item() == near(case["x_end_if_v_were_reused"])


def test_after_fresh_noise_only_a_kept_x0_says_what_dash_said() -> None:
    case = CASE["residual_space"]
    of_epsilon, of_sample = (Coordinates.of(published(), space) for space in ("epsilon", "sample"))
    x, z, t_s, t = number(case["x_ts"]), number(case["z_ts"]), case["t_s"], case["t_i"]
    epsilon, x0 = of_epsilon.keep(z, x, t_s), of_sample.keep(z, x, t_s)
    assert x0.item() == near(case["x0_ts"])
    x_ddim = of_epsilon.jump(epsilon, x, t_s, t)
    assert x_ddim.item() == near(case["x_ddim"])
    assert of_sample.jump(x0, x, t_s, t).item() == near(case["x_ddim"])

    alpha, sigma = of_sample.alpha_sigma(t, x)
    noised = alpha * x0 + sigma * case["noise"]
    assert noised.item() == near(case["x_renoised"])
    to_x0 = Coordinates.of(published(), "sample").keep
    assert to_x0(epsilon, x_ddim, t).item() == pytest.approx(case["x0_from_eps_after_ddim"], rel=1e-8)
    assert to_x0(epsilon, noised, t).item() == pytest.approx(case["x0_from_eps_after_noise"], rel=1e-8)
    assert of_sample.output(x0, noised, t).item() == near(case["eps_from_x0_after_noise"])


@pytest.mark.parametrize("space", ["epsilon", "sample"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_is_kept_gives_the_output_back(prediction: str, space: str) -> None:
    coordinates = Coordinates.of(published(prediction), space)
    z, x = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    for t in (980, 431.5, torch.tensor(20), torch.tensor([700, 10, 3])):
        assert torch.allclose(coordinates.output(coordinates.keep(z, x, t), x, t), z, rtol=1e-9)


@pytest.mark.parametrize("space", ["epsilon", "sample"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_jumps_are_steps_of_ddim(prediction: str, space: str) -> None:
    """diffusers' own DDIM is the reference, the step to clean data included."""
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    coordinates = Coordinates.of(scheduler, space)
    z, x = torch.randn(2, 2, 4, 8, 8)
    for t, t_next in ((999, 899), (99, -1)):
        expected = scheduler.step(z, t, x).prev_sample
        assert torch.allclose(coordinates.jump(coordinates.keep(z, x, t), x, t, t_next), expected, rtol=1e-4, atol=1e-5)


def test_jumps_with_noise_are_steps_of_ddpm() -> None:
    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing", variance_type="fixed_small")
    scheduler.set_timesteps(10)
    z, x = torch.randn(2, 2, 4, 8, 8)
    coordinates = Coordinates.of(scheduler, "sample")
    for t, t_next in ((999, 899), (399, 299), (99, -1)):
        # The scheduler draws from the generator what we draw from one of the same seed.
        expected = scheduler.step(z, t, x, generator=torch.Generator().manual_seed(3)).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        found = coordinates.jump(coordinates.keep(z, x, t), x, t, t_next, noise)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_times_of_samples_and_between_training_steps() -> None:
    coordinates = Coordinates.of(published("v_prediction"))
    z, x = torch.randn(2, 3, 4, dtype=torch.float64)
    each = torch.cat([coordinates.keep(z[i : i + 1], x[i : i + 1], t) for i, t in enumerate((900, 41.25, -1))])
    assert torch.allclose(coordinates.keep(z, x, torch.tensor([900, 41.25, -1])), each)
    sigma = [coordinates.alpha_sigma(t, x)[1].item() for t in (41, 41.25, 42)]
    assert sigma[0] < sigma[1] < sigma[2]
    assert [part.item() for part in coordinates.alpha_sigma(-0.5, x)] == [1, 0]
    assert coordinates.alpha_sigma(1000, x) == coordinates.alpha_sigma(999, x)


def test_half_precision_is_converted_in_single_precision() -> None:
    coordinates = Coordinates.of(published("v_prediction"))
    z, x = torch.randn(2, 2, 4, 8, 8).bfloat16()
    kept = coordinates.keep(z, x, 500)
    assert kept.dtype == torch.bfloat16
    assert torch.equal(kept, coordinates.keep(z.float(), x.float(), 500).bfloat16())


@pytest.mark.parametrize(
    ("scheduler", "flow"),
    [
        (FlowMatchEulerDiscreteScheduler(), True),
        (UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), True),
        (DPMSolverMultistepScheduler(), False),
        (EulerDiscreteScheduler(), False),
    ],
)
def test_flow_matching_is_told_and_keeps_the_velocity(scheduler: Any, flow: bool) -> None:
    assert is_flow(scheduler) == flow
    z, x = torch.randn(2, 1, 4)
    if flow:
        assert Coordinates.of(scheduler).keep(z, x, 900.0) is z


@pytest.mark.parametrize(
    ("scheduler", "space", "said"),
    [
        (DDIMScheduler(), "x0", "residual_space must be one of"),
        (FlowMatchEulerDiscreteScheduler(), "sample", "flow matching"),
        (EDMEulerScheduler(), "epsilon", "no alphas_cumprod"),
    ],
)
def test_what_cannot_be_had(scheduler: Any, space: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Coordinates.of(scheduler, space)


def test_flow_matching_has_no_noise() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="takes no noise"):
        Coordinates.of(FlowMatchEulerDiscreteScheduler()).jump(x, x, 1.0, 0.5, noise=x)
