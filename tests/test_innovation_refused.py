"""What innovation cannot do is said by its name, before anything is changed; and its options, files and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from diffaccel import accelerate, accelerate_pipeline, load_config, save_config
from diffaccel.innovation import Statistics
from diffaccel.methods.innovation import Innovation
from tests.innovation_reference import OBSERVATIONS, STEPS, Following, act, flux_statistics, network, robot
from tests.policies import FOREIGN, SCHEDULE, observe, query
from tests.policy_transformers import DiffusionTransformer
from tests.test_contract import same, traces
from tests.test_policy_pipeline import policy
from tests.tiny import FAMILIES, flux, run_flux


def accelerated(pipe: Any, **options: Any) -> Any:
    return accelerate_pipeline(pipe, "innovation", **{"calibration": OBSERVATIONS, "computed": 4, **options})


@pytest.fixture(scope="module")
def known() -> Statistics:
    found: Statistics = accelerated(robot()).acceleration.method.statistics
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": None}, r"Innovation learns from the pipeline: give calibration=observations"),
        ({"calibration": []}, "calibration is empty: give at least one observation"),
        ({"calibration": ["pick the cup"]}, "a policy learns from observations"),
        ({"calibration": OBSERVATIONS[..., :-1]}, "observations must have shape"),
        ({"calibration": Path("statistics.json")}, r"in a file that ends in \.safetensors, got statistics\.json"),
        ({"computed": STEPS + 1}, rf"computed=13 is not possible in a run of {STEPS} network calls"),
        ({"computed": 0}, "computed must be"),
        ({"schedule": "worst"}, "schedule must be one of best, even"),
        ({"anchors": 3}, "anchors"),
        ({"ridge": 2}, "ridge must be a number from 0 to 1, got 2"),
    ],
)
def test_options_that_cannot_be_leave_the_policy_as_it_was(options: dict[str, Any], message: str) -> None:
    pipe = robot()
    full, before = act(pipe), traces(pipe, pipe.denoiser)
    with pytest.raises(ValueError, match=message):
        accelerated(pipe, **options)
    assert same(before, traces(pipe, pipe.denoiser))
    assert torch.equal(act(pipe), full)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.safetensors"):
        accelerated(robot(), calibration=str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        (lambda: robot(made=network(seed=1)), "another weights"),
        (lambda: robot("ddim"), "another scheduler class .DDPMScheduler, now DDIMScheduler."),
        (lambda: robot(steps=20), "another number of steps .12, now 20."),
        (lambda: robot(made=network(causal_attn=True)), "another network config"),
    ],
)
def test_statistics_of_another_pipeline_are_refused(known: Statistics, pipe: Any, message: str) -> None:
    made = pipe()
    before = traces(made, made.denoiser)
    with pytest.raises(ValueError, match=rf"the calibration is for {message}.*make one for this pipeline"):
        accelerated(made, calibration=known)
    assert same(before, traces(made, made.denoiser))
    with pytest.raises(ValueError, match="computed=13 is not possible"):
        accelerated(robot(), calibration=known, computed=13)


def test_a_run_of_another_length_is_refused_and_the_next_is_right(known: Statistics) -> None:
    pipe = accelerated(robot(), calibration=known)
    expected = act(pipe)
    with pytest.raises(
        ValueError, match=r"calibrated for 12 steps, this run has 5: call it with num_inference_steps=12"
    ):
        pipe(OBSERVATIONS[:1], 5)
    assert torch.equal(act(pipe), expected)


@pytest.mark.parametrize("name", ["dit", "sd", "sdxl"])
def test_pictures_whose_outputs_do_not_fit_are_told_of_fitted(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.make()
    before = traces(pipe, family.denoiser(pipe))
    with pytest.raises(ValueError, match=r"method='fitted'"):
        accelerated(pipe, calibration=["a picture"])
    assert same(before, traces(pipe, family.denoiser(pipe)))


class Halved(Following):
    """Returns fewer numbers than its sample has."""

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        return self.head(self.blocks[0](sample)[..., :2])


def test_an_output_of_another_shape_is_told_in_the_first_call() -> None:
    pipe, calls = robot(made=Halved()), []
    before = traces(pipe, pipe.denoiser)
    hook = pipe.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"Halved returns \(16, 8, 2\) for a sample of \(16, 8, 3\): .*'fitted'"):
        accelerated(pipe)
    hook.remove()
    assert len(calls) == 1
    assert same(before, traces(pipe, pipe.denoiser))


def test_a_network_that_ends_otherwise_is_told_of_fitted() -> None:
    made = DiffusionTransformer(3, 12)
    made.last = made.output_proj
    del made.output_proj
    with pytest.raises(ValueError, match=r"DiffusionTransformer ends neither in a proj_out nor in a head.*'fitted'"):
        accelerated(policy(made))


@pytest.mark.parametrize("name", ["dit", "decoder", "unet-lerobot"])
def test_policies_of_other_projects_are_told_what_to_do(name: str, known: Statistics) -> None:
    made = FOREIGN[name][0]()
    expected = query(made)
    for calibration in (observe(made)[0], known):
        with pytest.raises(ValueError, match=r"a loop of its own: put network, scheduler and normalizer into a Policy"):
            accelerated(made, calibration=calibration)
    assert torch.equal(query(made), expected)


def test_a_compiled_network_and_a_network_by_itself_are_refused() -> None:
    pipe = robot()
    pipe.denoiser.compile()
    with pytest.raises(ValueError, match=r"is compiled as a whole: accelerate it uncompiled"):
        accelerated(pipe)
    with pytest.raises(
        TypeError, match=r"Innovation learns from runs of a pipeline: use diffaccel\.accelerate_pipeline"
    ):
        accelerate(network(), "innovation", steps=STEPS)


def test_guidance_in_a_part_of_the_run_cannot_be_learnt_from() -> None:
    """Its branches have no moments with the steps at which they were not called."""
    pipe = flux()

    def late(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if len(calls) in (3, 6):  # once more, as a branch of its own
            calls.append(1)
            kwargs["encoder_hidden_states"] = kwargs["encoder_hidden_states"] + 1
            with pipe.transformer.cache_context("late"):
                module(*args, **kwargs)
        calls.append(1)

    calls: list[int] = []
    pipe.transformer.register_forward_pre_hook(late, with_kwargs=True)
    with pytest.raises(ValueError, match=r"FluxTransformer2DModel was called at \d of 8 steps only.*'fitted'"):
        flux_statistics(pipe)


def test_files_say_which_pipeline_they_are_of_and_configurations_name_them(known: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "moments.safetensors"
    known.save(path)
    pipe = accelerated(robot(), calibration=path, anchors=2)
    expected = act(pipe)
    save_config(pipe, tmp_path / "innovation.json")
    again = accelerate_pipeline(robot(), tmp_path / "innovation.json")
    assert torch.equal(act(again), expected)
    assert load_config(tmp_path / "innovation.json").anchors == 2
    learnt = accelerated(robot())
    with pytest.raises(ValueError, match=r"in no file: write it with save\(path\) of .* the method's statistics"):
        save_config(learnt, tmp_path / "other.json")


def test_a_calibrated_method_can_be_used_again_and_learns_anew_from_another_calibration(known: Statistics) -> None:
    method = accelerated(robot(), calibration=known).acceleration.method
    assert accelerate_pipeline(robot(), method).acceleration.method.statistics is known
    other = accelerate_pipeline(robot(), method, calibration=OBSERVATIONS[:2]).acceleration.method
    assert other.statistics.samples == 2
    with pytest.raises(ValueError, match="has no statistics yet"):
        Innovation().plan([], STEPS)


def test_pictures_are_drawn_in_the_number_of_steps_of_their_calibration() -> None:
    pipe = flux()
    accelerated(pipe, calibration=flux_statistics(pipe, steps=6), computed=3)
    assert run_flux(pipe, steps=6).isfinite().all()
    with pytest.raises(ValueError, match="calibrated for 6 steps, this run has 8"):
        run_flux(pipe, steps=8)


def test_a_full_plan_says_that_nothing_is_skipped(caplog: pytest.LogCaptureFixture, known: Statistics) -> None:
    pipe = policy(network(), DDIMScheduler(**SCHEDULE), num_inference_steps=3)
    act(accelerated(pipe, calibration=OBSERVATIONS, computed=3))
    assert "nothing is skipped" in caplog.text
