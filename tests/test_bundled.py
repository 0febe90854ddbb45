"""Is the bundled pipeline a genuine, trained one that makes what its prompts ask for, and can the checker tell?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits import captions
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker, as_tensor
from diffaccel.pipelines.bundled.digits.denoiser import LatentRenderer, Recipe, Trainer
from diffaccel.pipelines.bundled.digits.evaluate import MARK, table
from diffaccel.pipelines.bundled.digits.flux import (
    FluxVelocity,
    TextParts,
    build_transformer,
    call_defaults,
    hidden_matrices,
)


@pytest.fixture(scope="module")
def flux() -> Any:
    pipeline = bundled.load()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def checker() -> DigitsChecker:
    return bundled.checker()


def test_every_part_is_the_real_class_in_float32(flux: Any) -> None:
    expected = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderTiny,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": T5Tokenizer,
    }
    assert type(flux) is FluxPipeline
    assert {name: type(flux.components[name]) for name in expected} == expected
    models = [flux.transformer, flux.vae, flux.text_encoder, flux.text_encoder_2]
    assert {parameter.dtype for model in models for parameter in model.parameters()} == {torch.float32}


def test_a_load_without_arguments_is_the_same(flux: Any) -> None:
    plain = FluxPipeline.from_pretrained(bundled.path())
    for name, weight in plain.transformer.state_dict().items():
        assert torch.equal(weight.float(), flux.transformer.state_dict()[name]), name


def test_files_hold_float16_and_stay_small() -> None:
    folder = bundled.path()
    weights = sorted(folder.glob("*/*.safetensors"))  # beside the folders lie calibrations
    assert [file.parent.name for file in weights] == ["text_encoder", "text_encoder_2", "transformer", "vae"]
    for file in weights:
        floating = {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()}
        assert floating == {torch.float16}, file
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and "dots" not in file.parts)
    assert size < 10e6


@pytest.mark.parametrize(
    "caption",
    ["a red 7 on a white background", "an orange 0 above a cyan 9 on a black background", ""],
)
def test_tokenizers_give_the_same_ids_after_saving(flux: Any, tmp_path: Path, caption: str) -> None:
    for tokenizer in (flux.tokenizer, flux.tokenizer_2):
        tokenizer.save_pretrained(tmp_path)
        again = type(tokenizer).from_pretrained(tmp_path)
        assert again(caption).input_ids == tokenizer(caption).input_ids
        assert tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True).strip() == caption


def test_no_caption_is_cut_or_unknown(flux: Any) -> None:
    length = bundled.call_defaults()["max_sequence_length"]
    every = bundled.prompts("train") + bundled.prompts("held-out")
    ids = flux.tokenizer_2(every).input_ids
    assert max(len(row) for row in ids) == length
    assert flux.tokenizer_2.unk_token_id not in {token for row in ids for token in row}
    assert max(len(row) for row in flux.tokenizer(every).input_ids) <= flux.tokenizer.model_max_length


def test_splits_are_disjoint_complete_and_balanced() -> None:
    train, held_out = bundled.prompts("train"), bundled.prompts("held-out")
    pairs = 2 * (10 * 6) ** 2 * 4
    assert len({*train, *held_out}) == len(train) + len(held_out) == 240 + pairs
    assert len(held_out) == 48 + pairs // 5
    single = Counter((scene.items[0]) for scene in captions.scenes("train", 1))
    assert len(single) == 60
    assert min(single.values()) >= 3
    for turn in (0, 1):
        seen = {(scene.layout, scene.items[turn], scene.background) for scene in captions.scenes("train", 2)}
        assert len(seen) == 2 * 60 * 4
    unseen = captions.scenes("held-out", 2)
    assert set(Counter((scene.layout, *scene.items) for scene in unseen).values()) <= {1}


def test_prompts_of_both_kinds_come_in_turn() -> None:
    first = [captions.Scene.parse(prompt) for prompt in bundled.prompts()[:96]]
    assert [len(scene.items) for scene in first] == [1, 2] * 48
    assert len({scene.layout for scene in first[:12]}) == 3


def test_captions_are_read_back() -> None:
    for scene in captions.scenes():
        assert captions.Scene.parse(scene.caption) == scene
        assert captions.Scene.of(*scene.indices) == scene


@pytest.mark.parametrize("items", [1, 2])
def test_held_out_prompts_are_followed(flux: Any, checker: DigitsChecker, items: int) -> None:
    prompts = [scene.caption for scene in captions.mixed_scenes("held-out") if len(scene.items) == items][:16]
    images = flux(
        prompts,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
        **bundled.call_defaults(),
    ).images
    right = sum(read == prompt for read, prompt in zip(checker.read(images), prompts, strict=True))
    # Right colours and digits by chance reach 5 of 16 single digits once in 60 times, 10 once in two million.
    assert right >= 10


def test_the_prompt_decides_not_the_noise(flux: Any, checker: DigitsChecker) -> None:
    prompts = [f"a red {digit} on a white background" for digit in range(10)]
    noise = torch.randn(1, 16, flux.transformer.config.in_channels).expand(10, -1, -1)
    arguments = bundled.call_defaults() | {"num_inference_steps": 14}
    images = flux(prompts, latents=noise.clone(), output_type="pt", **arguments).images
    assert len(set(checker.read(images * 2 - 1))) >= 8


def test_swapped_words_swap_the_picture(flux: Any, checker: DigitsChecker) -> None:
    prompts = [
        f"a red {digit} {layout} a blue {9 - digit} on a white background"
        for digit in range(10)
        for layout in ("left of", "above")
    ]
    generator = torch.Generator().manual_seed(2)
    images = flux(prompts, generator=generator, output_type="pt", **bundled.call_defaults()).images
    read = checker.scenes(images * 2 - 1)
    expected = [captions.Scene.parse(prompt) for prompt in prompts]
    for part in (lambda scene: scene.layout, lambda scene: [item.colour for item in scene.items]):
        assert sum(part(a) == part(b) for a, b in zip(read, expected, strict=True)) >= 18


def test_defaults_are_those_of_the_code_and_make_small_pictures(flux: Any) -> None:
    stored = bundled.call_defaults()
    assert stored == call_defaults(stored["true_cfg_scale"])
    picture = flux("a blue 4 on a yellow background", **stored | {"num_inference_steps": 1}).images[0]
    assert picture.size == (32, 32)


def test_pictures_show_items_where_the_caption_says() -> None:
    pytest.importorskip("sklearn")
    from diffaccel.pipelines.bundled.digits.data import Renderer

    render = Renderer("held-out", seed=4)
    for layout, axis in (("left of", 2), ("above", 1)):
        scene = captions.Scene.parse(f"a red 8 {layout} a green 8 on a black background")
        picture = render.draw([scene])[0].add(1)
        picture = picture.transpose(1, 2) if axis == 1 else picture
        red, green = picture[0], picture[1]
        assert red[:, :16].sum() > 5 * red[:, 16:].sum()
        assert green[:, 16:].sum() > 2 * green[:, :16].sum()


@pytest.mark.parametrize("items", [1, 2])
def test_checker_reads_unseen_handwriting_and_the_vae_keeps_it(flux: Any, checker: DigitsChecker, items: Any) -> None:
    pytest.importorskip("sklearn")
    from diffaccel.pipelines.bundled.digits.checker import accuracy, held_out_renders
    from diffaccel.pipelines.bundled.digits.vae import reconstruct

    images, expected = held_out_renders(400, seed=7, items=items)
    assert accuracy(checker, images, expected)["exact"] >= 0.96
    assert accuracy(checker, reconstruct(flux.vae, images), expected)["exact"] >= 0.96


def test_latents_drawn_directly_are_those_of_encoded_pictures(flux: Any) -> None:
    pytest.importorskip("sklearn")
    from diffaccel.pipelines.bundled.digits.data import Renderer, scene_table
    from diffaccel.pipelines.bundled.digits.vae import latents_of

    render, scenes = Renderer("held-out", seed=None), scene_table(captions.scenes())
    render.canvases = render.canvases[render.starts]  # one handwriting of each digit will do
    render.starts, render.counts = torch.arange(10), torch.ones(10, dtype=torch.long)
    with torch.no_grad():
        direct = LatentRenderer(flux.vae, render)
        torch.manual_seed(3)
        latents, rows = direct.batch(scenes, 64)
        torch.manual_seed(3)
        images, same_rows = render.batch(scenes, 64)
        encoded = latents_of(flux.vae, images)
    assert torch.equal(rows, same_rows)
    torch.testing.assert_close(latents, encoded, atol=1e-4, rtol=1e-4)


def test_a_resumed_training_is_the_uninterrupted_one(flux: Any, tmp_path: Path) -> None:
    text = TextParts(flux.tokenizer, flux.text_encoder, flux.tokenizer_2, flux.text_encoder_2)
    prompts = bundled.prompts("train")[:4]

    def trainer() -> Trainer:
        torch.manual_seed(0)
        model = FluxVelocity(build_transformer(2, width=32, double=1, single=1), text, prompts)
        return Trainer(model, hidden_matrices(model.transformer), Recipe(minutes=1), tmp_path)

    def steps(trainer: Trainer, count: int) -> list[float]:
        return [trainer.step(trainer.model, torch.randn(4, 16, 8), torch.arange(4)) for _ in range(count)]

    whole = trainer()
    losses = steps(whole, 6)
    first = trainer()
    steps(first, 3)
    first.save()
    second = trainer()
    assert second.resume()
    assert second.iteration == 3
    assert steps(second, 3) == losses[3:]
    for expected, weight in zip(whole.ema.shadow_params, second.ema.shadow_params, strict=True):
        assert torch.equal(weight, expected)


def test_learning_rate_warms_up_stays_and_ends_at_zero() -> None:
    rates = [Recipe(decay=0.5).rate(progress) for progress in (0.0, 0.02, 0.5, 0.75, 1.0)]
    assert rates == [0.05, 1.0, 1.0, 0.5, 0.0]


def test_checker_takes_every_form_of_picture(flux: Any, checker: DigitsChecker) -> None:
    arguments = bundled.call_defaults() | {"num_inference_steps": 8}
    shots = {
        kind: flux(
            "a purple 8 on a black background",
            output_type=kind,
            generator=torch.Generator().manual_seed(1),
            **arguments,
        ).images
        for kind in ("pil", "np", "pt")
    }
    reference = shots["pt"] * 2 - 1
    torch.testing.assert_close(as_tensor(shots["np"]), reference)
    torch.testing.assert_close(as_tensor(shots["pil"]), reference, atol=1.1 / 127.5, rtol=0)
    assert len({caption for form in (shots["pil"], shots["np"], reference) for caption in checker.read(form)}) == 1


def test_bad_input_is_explained(checker: DigitsChecker) -> None:
    with pytest.raises(ValueError, match="flux-digits"):
        bundled.path("flux")
    with pytest.raises(ValueError, match="held-out"):
        bundled.prompts("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="generate at that size"):
        checker.read(np.zeros((1, 64, 64, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="not a caption"):
        captions.Scene.parse("a red seven")
    with pytest.raises(ValueError, match="takes 2 items"):
        captions.Scene((captions.Item(7, "red"),), "white", "above")


def test_the_model_card_shows_the_measured_gates_and_they_hold() -> None:
    rows = json.loads((bundled.path() / "gates.json").read_text())
    assert (bundled.path() / "README.md").read_text().split(MARK)[1].strip() == table(rows)
    rates = {row["what"]: row["exact"] for row in rows}
    assert all(rate >= 0.97 for what, rate in rates.items() if what.startswith("checker"))
    guidance = bundled.call_defaults()["true_cfg_scale"]
    name = f"held-out prompts, 28 steps, guidance {guidance:g}, both kinds"
    held_out = [rate for what, rate in rates.items() if name in what]
    assert len(held_out) == 1
    assert held_out[0] >= 0.80
