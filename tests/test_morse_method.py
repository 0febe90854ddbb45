"""Does the method plan within its budget, refuse what cannot be had, and come back from a file?"""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from hypothesis import given
from hypothesis import strategies as st

from diffaccel import accelerate, accelerate_pipeline, load_config, save_config
from diffaccel.methods.morse import Morse
from diffaccel.morse import MorseDot, Ratio, lsd, measure_n
from diffaccel.morse.budget import dash_steps
from tests import policies, tiny
from tests.morse_toys import Dot, with_dot


def digits() -> DDIMPipeline:
    """An unconditional pipeline: a call needs no argument."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    pipe = DDIMPipeline(tiny.randomize(network), DDIMScheduler(timestep_spacing="trailing", clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, steps: int = 6) -> Any:
    return pipe(batch_size=2, num_inference_steps=steps, output_type="np", generator=torch.Generator().manual_seed(1))


# Plans


def orders(method: Morse, steps: int) -> str:
    return "".join("D" if dash else "d" for dash in method.plan([], steps).rows[0])


def test_plans_of_dots_per_dash() -> None:
    method = Morse(Dot(), dots_per_dash=2)
    assert orders(method, 6) == "DddDdd"
    assert orders(method, 7) == "DddDddd"
    assert orders(method, 2) == "Dd"
    assert orders(Morse(Dot(), dots_per_dash=0.5), 6) == "DDdDDd"
    assert orders(Morse(Dot(), dots_per_dash=0), 4) == "DDDD"


def test_plans_of_a_bound() -> None:
    """N = 6 and r = 2.5: 18/7 Dot steps for each Dash step."""
    method = Morse(Dot(), ratio=6.0)
    assert method.plan([], 25).computed() == [0, 3, 7, 10, 14, 17, 21]
    assert method.num_inference_steps is None


def test_a_slow_dot_has_a_bound_half_way_to_its_ratio() -> None:
    """N = 2 has r = 1.5: k (1 - 1/2) of 1 = .5, so 2 Dot steps for each Dash step."""
    assert Morse(Dot(), ratio=2.0).plan([], 9).computed() == [0, 3, 6]
    assert Morse(Dot(), ratio=2.0, lsd=4).num_inference_steps == 6


@given(
    budget=st.floats(1, 40),
    n=st.floats(1.1, 12),
    q=st.none() | st.floats(0, 6),
)
def test_a_run_of_the_steps_asked_for_stays_in_its_budget(budget: float, n: float, q: float | None) -> None:
    method = Morse(Dot(), lsd=budget, ratio=n, dots_per_dash=q)
    steps = method.num_inference_steps
    assert steps is not None
    plan = method.plan([], steps)
    k_dash = len(plan.computed())
    assert lsd(k_dash, steps - k_dash, n) <= budget + 1e-6


@given(budget=st.integers(1, 30), n=st.fractions(2, 12, max_denominator=4), steps=st.integers(1, 120))
def test_other_numbers_of_steps_come_as_near_to_the_budget_as_they_can(budget: int, n: Fraction, steps: int) -> None:
    method = Morse(Dot(), lsd=float(budget), ratio=float(n), dots_per_dash=2)
    exact = dash_steps(Fraction(budget), steps, n)
    if steps == method.num_inference_steps:
        return
    if not Fraction(1, 2) <= exact < steps + Fraction(1, 2):
        with pytest.raises(
            ValueError, match=rf"no run of {steps} steps.*num_inference_steps={method.num_inference_steps}"
        ):
            method.plan([], steps)
        return
    k_dash = len(method.plan([], steps).computed())
    assert abs(k_dash - exact) <= Fraction(1, 2)


def test_a_pipeline_tells_the_number_of_steps_it_is_to_be_called_with() -> None:
    pipe = digits()
    with_dot(pipe, lsd=6.0, ratio=6.0, dots_per_dash=None)
    steps = pipe.acceleration.num_inference_steps
    assert steps == 4 + 11  # 6 / (1 + 3/7) = 4.2 Dash steps, and 18/7 of 4 in Dot steps, or what is left of 6
    assert pipe.acceleration.plan.steps == steps
    run(pipe, steps)
    report = pipe.acceleration.report()
    assert (report.dash, report.dot) == (4, 11)
    assert report.lsd_planned == pytest.approx(4 + 11 / 6)
    pipe.acceleration.remove()
    accelerate_pipeline(pipe, "taylorseer", level="block")
    assert pipe.acceleration.num_inference_steps == 50  # the default of the class


# What is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dot": None}, "needs a Dot"),
        ({"dot": 3}, "dot must be a MorseDot, its folder or its hub id"),
        ({"lsd": 0.5}, "lsd must be a number of at least 1"),
        ({"dots_per_dash": -1}, "dots_per_dash must be a number of at least 0"),
        ({"ratio": 0}, "ratio must be a number above 0"),
        ({"max_gap": 0}, "max_gap must be a number above 0"),
        ({"bound": "3"}, "bound must be a number"),
        ({"ratio": 2.4, "bound": 2.5, "dots_per_dash": None}, r"bound of 2\.5 cannot be reached.*N = 2\.4"),
        ({"ratio": 3.0, "bound": 3.0, "dots_per_dash": None}, "N = 3 "),
        ({"ratio": 0.9, "lsd": 5.0}, r"faster than Dash.*N = 0\.9"),
        ({"guided": 4.0}, "each branch of guidance: leave guided out"),
        ({"dot": Dot(guided=True)}, "give guided="),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    pipe = digits()
    with pytest.raises(ValueError, match=said):
        accelerate_pipeline(pipe, "morse", **{"dot": Dot(), "dots_per_dash": 2, **options})
    assert "acceleration" not in vars(pipe)
    assert "forward" not in vars(pipe.unet)


def test_networks_that_cannot_be() -> None:
    with pytest.raises(TypeError, match="accelerate_pipeline"):
        accelerate(tiny.unet(), "morse", steps=6, dot=Dot())
    pipe = digits()
    with_dot(pipe)
    with pytest.raises(ValueError, match=r"already accelerated by Morse\(dot=<Dot>, dots_per_dash=2"):
        with_dot(pipe)
    pipe = tiny.flux()
    pipe.transformer_2 = tiny.flux_transformer()
    with pytest.raises(ValueError, match=r"one denoiser.*transformer, transformer_2"):
        with_dot(pipe)


def test_weights_out_of_reach_are_refused() -> None:
    pipe = digits()
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), "leaf_level", use_stream=False)
    with pytest.raises(ValueError, match="offloaded layer by layer"):
        with_dot(pipe)


def test_a_policy_with_its_own_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="a loop of its own"):
        with_dot(policies.unet_policy())


# N


def test_n_is_measured_where_it_is_needed() -> None:
    pipe = digits()
    dot = Dot(lambda x, t, x_s, k_s, t_s: k_s @ torch.ones(8, 8))
    accelerate_pipeline(pipe, "morse", dot=dot)
    ratio = pipe.acceleration.method.measured
    assert ratio.n == ratio.dash_seconds / ratio.dot_seconds > 3  # an idle Dot
    assert (ratio.device, ratio.dtype, ratio.batch, ratio.shape) == ("cpu", "float32", 1, (1, 8, 8))
    assert len(dot.asked) == 6
    pipe.acceleration.remove()
    assert measure_n(pipe, dot, rounds=2, batch_size=3).batch == 3
    pipe = digits()
    assert with_dot(pipe, dots_per_dash=2).asked == []  # the plan needs no N
    assert pipe.acceleration.method.n is None


def test_n_of_a_pipeline_that_cannot_be_called_by_its_defaults() -> None:
    pipe = tiny.stable_diffusion()
    with pytest.raises(ValueError, match=r"no text encoder.*ratio=diffaccel\.morse\.measure_n"):
        accelerate_pipeline(pipe, "morse", dot=Dot(), lsd=6)
    text = {"prompt_embeds": torch.randn(2, 6, 24), "negative_prompt_embeds": torch.randn(2, 6, 24)}
    ratio = measure_n(pipe, Dot(), rounds=1, **text)
    assert ratio.batch == 4
    guided = measure_n(pipe, halved := Dot(guided=True), rounds=1, **text)
    assert guided.batch == 4
    assert {len(asked.x) for asked in halved.asked} == {2}
    with pytest.raises(ValueError, match="rounds"):
        measure_n(pipe, Dot(), rounds=0)


# Real Dots, and files


def test_a_real_dot_runs_trains_nothing_of_dash_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    pipe = digits()
    plain = run(pipe, 4).images
    dot = MorseDot.of(pipe.unet, m=1, widths=(8,), rank=2)
    with_dot(pipe, dot, dots_per_dash=1)
    assert abs(run(pipe, 8).images - plain).max() < 1e-4  # untrained, it says nothing
    pipe.acceleration.remove()

    with torch.no_grad():
        for parameter in dot.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    with_dot(pipe, dot, dots_per_dash=1)
    expected = run(pipe, 8).images
    assert abs(expected - plain).max() > 1e-3
    pipe.acceleration.remove()
    dot.save_pretrained(tmp_path / "dot")
    accelerate_pipeline(pipe, "morse", dot=tmp_path / "dot", dots_per_dash=1)
    assert abs(run(pipe, 8).images - expected).max() < 1e-6
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_a_dot_of_another_network_is_refused(tmp_path: Path) -> None:
    MorseDot.of(digits().unet, m=1, widths=(8,), rank=2).save_pretrained(tmp_path)
    pipe = digits()
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1)
    with pytest.raises(ValueError, match="other weights"):
        accelerate_pipeline(pipe, "morse", dot=tmp_path, dots_per_dash=1)
    with pytest.raises(ValueError, match="made for UNet2DModel, not for UNet2DConditionModel"):
        accelerate_pipeline(tiny.stable_diffusion(), "morse", dot=str(tmp_path), dots_per_dash=1)


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_configurations_name_the_folder_of_the_dot(tmp_path: Path, suffix: str) -> None:
    pipe = digits()
    MorseDot.of(pipe.unet, m=1, widths=(8,), rank=2).save_pretrained(tmp_path / "dot")
    accelerate_pipeline(pipe, "morse", dot=tmp_path / "dot", lsd=3, ratio=5.0)
    expected = pipe.acceleration.plan
    save_config(pipe, tmp_path / f"fast{suffix}")
    pipe.acceleration.remove()
    shutil.copytree(tmp_path, moved := tmp_path.with_name(f"{tmp_path.name}-moved"))
    shutil.rmtree(tmp_path)  # a path relative to the file
    found = load_config(moved / f"fast{suffix}")
    assert (found.lsd, found.ratio, Path(found.dot)) == (3, 5.0, moved / "dot")
    accelerate_pipeline(pipe, moved / f"fast{suffix}")
    assert pipe.acceleration.plan == expected
    pipe.acceleration.remove()
    # A Dot that was loaded knows where it came from; what was measured is of this machine and not written.
    method = Morse(
        MorseDot.from_pretrained(moved / "dot"), measured=Ratio(3.0, 0.3, 0.1, "cpu", "float32", 1, (1, 8, 8))
    )
    save_config(method, moved / "again.json")
    assert json.loads((moved / "again.json").read_text()) == {"method": "morse", "dot": "dot"}


def test_dots_of_the_hub_and_dots_in_no_folder(tmp_path: Path) -> None:
    save_config(Morse("somebody/dot-of-digits", dots_per_dash=2), tmp_path / "hub.json")
    assert load_config(tmp_path / "hub.json") == Morse("somebody/dot-of-digits", dots_per_dash=2)
    for dot in (Dot(), MorseDot.of(digits().unet, m=1, widths=(8,), rank=2)):
        with pytest.raises(ValueError, match=r"dot\.save_pretrained\(folder\)"):
            save_config(Morse(dot, dots_per_dash=2), tmp_path / "none.json")
