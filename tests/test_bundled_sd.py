"""Is the bundled Stable Diffusion pipeline a genuine, trained one that makes what its prompts ask for?"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from diffaccel.pipelines import bundled, image
from diffaccel.pipelines.bundled.digits import captions, sd
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker
from diffaccel.pipelines.bundled.digits.evaluate import MARK, table
from diffaccel.pipelines.bundled.digits.text import WIDTH, causal_codes, clip_tokens_output, code_book, token_ids
from diffaccel.pipelines.bundled.digits.tokenizers import CLIP_LENGTH

NAME = "sd-digits"


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.set_num_threads(1)
    pipeline = image.load(NAME)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def checker() -> DigitsChecker:
    return bundled.checker()


def test_every_part_is_the_real_class_in_float32(pipe: Any) -> None:
    assert type(pipe) is StableDiffusionPipeline
    expected = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderTiny,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "scheduler": DDIMScheduler,
    }
    assert {name: type(pipe.components[name]) for name in expected} == expected
    models = [pipe.unet, pipe.vae, pipe.text_encoder]
    assert {parameter.dtype for model in models for parameter in model.parameters()} == {torch.float32}
    assert pipe.safety_checker is None
    assert len(pipe.unet.down_blocks) == 3
    assert pipe.scheduler.config.prediction_type == "epsilon"


def test_files_hold_float16_and_stay_small() -> None:
    folder = bundled.path(NAME)
    weights = sorted(folder.glob("*/*.safetensors"))  # beside the folders lie calibrations
    assert [file.parent.name for file in weights] == ["text_encoder", "unet", "vae"]
    for file in weights:
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float16}
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and "dots" not in file.parts) < 10e6


def test_size_of_pictures_needs_no_arguments(pipe: Any) -> None:
    picture = pipe("a blue 4 on a yellow background", num_inference_steps=2).images[0]
    assert picture.size == (32, 32)
    stored = bundled.call_defaults(NAME)
    assert stored == sd.call_defaults(stored["guidance_scale"])


@pytest.mark.parametrize("items", [1, 2])
def test_held_out_prompts_are_followed(pipe: Any, checker: DigitsChecker, items: int) -> None:
    prompts = [scene.caption for scene in captions.mixed_scenes("held-out") if len(scene.items) == items][:16]
    pictures = image.pictures(pipe, prompts, list(range(16)), batch=16)
    right = sum(read == prompt for read, prompt in zip(checker.read(2 * pictures - 1), prompts, strict=True))
    assert right >= 13


def test_swapped_words_swap_the_picture(pipe: Any, checker: DigitsChecker) -> None:
    prompts = [
        f"a red {digit} {layout} a blue {9 - digit} on a white background"
        for digit in range(0, 10, 2)
        for layout in ("left of", "above")
    ]
    read = checker.scenes(2 * image.pictures(pipe, prompts, list(range(10)), batch=10) - 1)
    expected = [captions.Scene.parse(prompt) for prompt in prompts]
    for part in (lambda scene: scene.layout, lambda scene: [item.colour for item in scene.items]):
        assert sum(part(a) == part(b) for a, b in zip(read, expected, strict=True)) >= 9


def test_the_text_encoder_says_what_it_was_taught_of_captions_it_has_not_seen(pipe: Any) -> None:
    unseen = [scene.caption for scene in captions.mixed_scenes("held-out")[:200]]
    with torch.no_grad():
        tokens = clip_tokens_output(pipe.text_encoder, token_ids(pipe.tokenizer, unseen, CLIP_LENGTH))
    error = (tokens - causal_codes(unseen, code_book())).square().mean()
    assert error < 0.01  # of a mean square of 1


def test_codes_never_say_what_is_read_later() -> None:
    prompts = [
        "a red 7 on a white background",
        "a red 7 left of a blue 2 on a white background",
        "a red 7 left of a green 5 on a black background",
        "",
    ]
    one, two, three, none = causal_codes(prompts, code_book())
    same = [[torch.equal(a, b) for a, b in zip(first, two, strict=True)] for first in (one, three)]
    # The start and "a red 7" are common to all; "left of a" to the second and third; the ends differ.
    assert same[0] == [True] * 4 + [False] * 12
    assert same[1] == [True] * 7 + [False] * 9
    assert torch.equal(none, none[:1].expand(CLIP_LENGTH, WIDTH))
    assert torch.equal(none[0], one[0])
    torch.testing.assert_close(one.square().mean(-1), torch.ones(CLIP_LENGTH))


def test_model_card_shows_the_measured_gates_and_they_hold() -> None:
    rows = json.loads((bundled.path(NAME) / "gates.json").read_text())
    assert (bundled.path(NAME) / "README.md").read_text().split(MARK)[1].strip() == table(rows)
    rates = {row["what"]: row["exact"] for row in rows}
    guidance = bundled.call_defaults(NAME)["guidance_scale"]
    for setting in ("held-out prompts, 28 steps", "held-out prompts, 50 steps", "train prompts, 28 steps"):
        found = [rate for what, rate in rates.items() if f"{setting}, guidance {guidance:g}, both kinds" in what]
        assert len(found) == 1
        assert found[0] >= 0.95


def test_a_new_unet_predicts_nothing_and_its_branches_add_nothing() -> None:
    torch.manual_seed(0)
    model = sd.build_unet(4, widths=(16, 32))
    latents, times, text = torch.randn(2, 4, 8, 8), torch.tensor([1, 999]), torch.randn(2, 16, 64)
    assert not model(latents, times, text).sample.any()
    hidden, embedding = torch.randn(2, 16, 8, 8), torch.randn(2, 64)
    assert torch.equal(model.down_blocks[0].resnets[0](hidden, embedding), hidden)
    assert torch.equal(model.down_blocks[0].attentions[0](hidden, text).sample, hidden)
