"""Do all kinds of image pipelines obey one call surface, and is a batch the sum of its single runs?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline, FluxPipeline, QwenImagePipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from diffaccel import accelerate_pipeline
from diffaccel.pipelines import bundled, image
from diffaccel.pipelines.source import locate
from tests.tiny import FAMILIES

PROMPTS = ["a red 7 on a white background", "a blue 2 on a black background", "a green 5 on a yellow background"]


@pytest.fixture(scope="module")
def digits() -> Any:
    pipe = image.load("flux-digits")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def dit() -> Any:
    return FAMILIES["dit"].make()


def test_batch_equals_single_runs_even_accelerated(digits: Any) -> None:
    for accelerated in (False, True):
        if accelerated:
            accelerate_pipeline(digits, interval=2, warmup=1)
        together = image.pictures(digits, PROMPTS, [3, 4, 5], steps=4)
        in_turn = image.pictures(digits, PROMPTS, [3, 4, 5], steps=4, batch=1)
        alone = torch.cat([image.pictures(digits, [p], s, steps=4) for p, s in zip(PROMPTS, (3, 4, 5), strict=True)])
        torch.testing.assert_close(in_turn, alone, rtol=0, atol=0)
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
        assert not torch.allclose(together[0], together[1], atol=0.1)
    digits.acceleration.remove()


def test_call_defaults_of_the_bundled_pipeline_are_applied_and_can_be_changed(digits: Any) -> None:
    assert image.call_arguments(digits) == bundled.call_defaults()
    assert image.pictures(digits, PROMPTS[:1], steps=2).shape == (1, 3, 32, 32)
    assert image.pictures(digits, PROMPTS[:1], steps=2, height=48, width=64).shape == (1, 3, 48, 64)
    changed = image.call_arguments(digits, 3, 1.5, width=64)
    assert changed == bundled.call_defaults() | {"num_inference_steps": 3, "true_cfg_scale": 1.5, "width": 64}


def test_guidance_of_one_switches_the_negative_branch_off(digits: Any) -> None:
    calls = []
    hook = digits.transformer.register_forward_hook(lambda *_: calls.append(1))
    image.pictures(digits, PROMPTS[:1], steps=2)
    image.pictures(digits, PROMPTS[:1], steps=2, guidance=1)
    hook.remove()
    assert len(calls) == 2 * 2 + 2


def test_the_bundled_pipeline_draws_what_is_asked_for(digits: Any) -> None:
    drawn = image.generate(digits, PROMPTS, seeds=1)
    assert [picture.size for picture in drawn] == [(32, 32)] * 3
    assert bundled.checker().read(drawn) == PROMPTS


def test_classes_are_given_by_number_or_by_name(dit: Any) -> None:
    dit.labels = {"otter": 2, "great white shark": 3}
    by_number = image.pictures(dit, ["2", "3"], seeds=[0, 1], steps=2)
    torch.testing.assert_close(
        image.pictures(dit, ["otter", "great white shark"], [0, 1], 2), by_number, rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="DiTPipeline knows no class 'shark'"):
        image.pictures(dit, ["shark"], steps=2)


def test_pictures_are_what_the_pipeline_itself_returns(dit: Any) -> None:
    ours = image.generate(dit, ["1", "5"], seeds=[8, 9], steps=3, guidance=2.0)
    generators = [torch.Generator().manual_seed(seed) for seed in (8, 9)]
    theirs = dit([1, 5], guidance_scale=2.0, num_inference_steps=3, generator=generators).images
    assert [picture.tobytes() for picture in ours] == [picture.tobytes() for picture in theirs]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 64}, "DiTPipeline takes no height"),
        ({"negative_prompt": "x"}, "DiTPipeline takes no negative_prompt"),
        ({"seeds": [1, 2]}, "1 prompts and 2 seeds"),
    ],
)
def test_arguments_a_pipeline_does_not_take_are_refused(arguments: Any, message: str, dit: Any) -> None:
    with pytest.raises(ValueError, match=message):
        image.pictures(dit, ["1"], **arguments)


@pytest.mark.parametrize(
    ("kind", "config", "default", "guided", "arguments"),
    [
        (FluxPipeline, {"guidance_embeds": True}, 1, 1, {"guidance_scale": 4}),
        (FluxPipeline, {"guidance_embeds": False}, 1, 2, {"true_cfg_scale": 4, "negative_prompt": ""}),
        (QwenImagePipeline, {"guidance_embeds": False}, 1, 2, {"true_cfg_scale": 4, "negative_prompt": ""}),
        (DiTPipeline, {}, 2, 2, {"guidance_scale": 4}),
        (StableDiffusionPipeline, {"time_cond_proj_dim": None}, 2, 2, {"guidance_scale": 4}),
        (StableDiffusionXLPipeline, {"time_cond_proj_dim": 256}, 1, 1, {"guidance_scale": 4}),
    ],
)
def test_guidance_by_family(kind: Any, config: Any, default: int, guided: int, arguments: Any) -> None:
    assert image.guidance_arguments(kind, config, 4) == arguments
    assert image.guidance_arguments(kind, config, None) == {}
    assert image.samples_per_picture(kind, config, {}) == default
    assert image.samples_per_picture(kind, config, {}, 4) == guided
    assert image.samples_per_picture(kind, config, {}, 1) == 1


def test_steps_and_tokens_come_from_the_call_the_defaults_or_the_class() -> None:
    assert image.denoising_steps(FluxPipeline, {}) == 28
    assert image.denoising_steps(FluxPipeline, {"num_inference_steps": 9}) == 9
    assert image.denoising_steps(FluxPipeline, {"num_inference_steps": 9}, 5) == 5
    assert image.text_tokens(FluxPipeline, {}) == 512
    assert image.text_tokens(FluxPipeline, {"max_sequence_length": 8}) == 8
    assert image.text_tokens(StableDiffusionPipeline, {}) == 77


def test_models_are_found_by_name_folder_or_hub_id(tmp_path: Path) -> None:
    assert locate("flux-digits") == str(bundled.path())
    assert locate("owner/name") == "owner/name"
    (tmp_path / "model_index.json").write_text("{}")
    assert locate(str(tmp_path)) == str(tmp_path)
    for wrong in ("flux-digit", "./nowhere", "/nowhere/at/all", "", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match="give flux-digits, dit-digits, sd-digits, ddpm-digits, a folder"):
            locate(wrong)


def test_rounding_to_bytes() -> None:
    [picture] = image.to_pil(torch.tensor([0.0, 0.499 / 255, 0.501 / 255]).view(1, 3, 1, 1))
    assert picture.getpixel((0, 0)) == (0, 0, 1)
