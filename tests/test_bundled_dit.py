"""Is the bundled DiT pipeline a genuine, trained one that draws the classes it is asked for?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import load_file

from diffaccel.cli import main
from diffaccel.commands.prompts import read_prompts
from diffaccel.pipelines import bundled, image
from diffaccel.pipelines.bundled.digits import captions, dit
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker
from diffaccel.pipelines.bundled.digits.evaluate import MARK, table
from diffaccel.pipelines.bundled.digits.objective import Epsilon, flow_matching, noise_schedule

NAME = "dit-digits"


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
    assert type(pipe) is DiTPipeline
    expected = {"transformer": DiTTransformer2DModel, "vae": AutoencoderTiny, "scheduler": DDIMScheduler}
    assert {name: type(pipe.components[name]) for name in expected} == expected
    assert {weight.dtype for part in (pipe.transformer, pipe.vae) for weight in part.parameters()} == {torch.float32}
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert not pipe.scheduler.config.clip_sample


def test_files_hold_float16_and_stay_small() -> None:
    folder = bundled.path(NAME)
    weights = sorted(folder.glob("*/*.safetensors"))  # beside the folders lie calibrations
    assert [file.parent.name for file in weights] == ["transformer", "vae"]
    for file in weights:
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float16}
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 10e6


def test_vae_is_that_of_the_flux_pipeline(pipe: Any) -> None:
    other = load_file(bundled.path("flux-digits") / "vae" / "diffusion_pytorch_model.safetensors")
    own = pipe.vae.state_dict()
    assert all(torch.equal(own[name], weight.float()) for name, weight in other.items())


def test_classes_are_all_captions_of_one_digit_and_are_saved(pipe: Any, tmp_path: Path) -> None:
    expected = [scene.caption for scene in captions.scenes(items=1)]
    assert pipe.get_label_ids(expected) == list(range(240))
    dit.assemble(pipe.transformer, pipe.vae).save_pretrained(tmp_path)
    assert DiTPipeline.from_pretrained(tmp_path).labels == pipe.labels
    assert {*bundled.prompts("train", NAME), *bundled.prompts("held-out", NAME)} == {*expected}
    assert len(bundled.prompts("held-out", NAME)) == 48


def test_every_digit_colour_and_background_is_drawn(pipe: Any, checker: DigitsChecker) -> None:
    chosen = captions.scenes(items=1)[::10]
    prompts = [scene.caption for scene in chosen]
    pictures = image.pictures(pipe, prompts, list(range(len(prompts))), batch=len(prompts))
    right = sum(read == prompt for read, prompt in zip(checker.read(2 * pictures - 1), prompts, strict=True))
    assert len({scene.items[0].digit for scene in chosen}) == 10
    assert right >= 22  # right colours and digits by chance: 2


def test_class_decides_not_the_noise(pipe: Any, checker: DigitsChecker) -> None:
    prompts = [f"a red {digit} on a white background" for digit in range(10)]
    pictures = image.pictures(pipe, prompts, 3, steps=14)
    assert len(set(checker.read(2 * pictures - 1))) >= 9


def test_names_and_numbers_of_classes_mean_the_same(pipe: Any) -> None:
    name = "a green 3 on a gray background"
    number = str(pipe.get_label_ids([name])[0])
    one, other = (image.pictures(pipe, [prompt], 1, steps=3) for prompt in (name, number))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="knows no class"):
        image.pictures(pipe, ["a red 7 left of a blue 2 on a white background"], 1, steps=3)


def test_the_empty_class_is_one_of_its_own(pipe: Any) -> None:
    tables = [block.norm1.emb.class_embedder.embedding_table.weight for block in pipe.transformer.transformer_blocks]
    for weight in tables:
        assert weight.shape[0] == dit.EMPTY_CLASS + 1
        assert weight[dit.EMPTY_CLASS].abs().sum() > 0
        assert not weight[240 : dit.EMPTY_CLASS].any()


def test_defaults_are_those_of_the_code() -> None:
    stored = bundled.call_defaults(NAME)
    assert stored == dit.call_defaults(stored["guidance_scale"])


def test_model_card_shows_the_measured_gates_and_they_hold() -> None:
    rows = json.loads((bundled.path(NAME) / "gates.json").read_text())
    assert (bundled.path(NAME) / "README.md").read_text().split(MARK)[1].strip() == table(rows)
    rates = {row["what"]: row["exact"] for row in rows}
    guidance = bundled.call_defaults(NAME)["guidance_scale"]
    for steps in (28, 50):
        found = [rate for what, rate in rates.items() if f"all classes, {steps} steps, guidance {guidance:g}" in what]
        assert len(found) == 1
        assert found[0] >= 0.95


def test_blocks_of_a_new_transformer_are_the_identity() -> None:
    torch.manual_seed(0)
    model = dit.build_transformer(4, width=64, blocks=2)
    latents, times = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999])
    hidden = model.pos_embed(latents)
    for block in model.transformer_blocks:
        assert torch.equal(block(hidden, timestep=times, class_labels=torch.tensor([0, 5, 1000])), hidden)
    assert not model(latents, times, torch.tensor([0, 5, 1000])).sample.any()


def test_classes_that_share_a_digit_start_nearer_than_those_that_share_nothing() -> None:
    torch.manual_seed(0)
    table = dit.build_transformer(4).transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
    number = {scene.caption: k for k, scene in enumerate(dit.classes())}
    red, blue, other = (
        table[number[name]]
        for name in (
            "a red 7 on a white background",
            "a blue 7 on a black background",
            "a green 3 on a gray background",
        )
    )
    assert torch.cosine_similarity(red, blue, 0) > 0.15 > torch.cosine_similarity(red, other, 0).abs()


def test_noise_is_mixed_in_as_the_scheduler_does_it() -> None:
    torch.manual_seed(0)
    scheduler, level = noise_schedule(), torch.linspace(-6, 6, 25)
    data, noise = torch.randn(2, 25, 3, 4, 4)
    noisy, time, target, weight = Epsilon(scheduler)(data, noise, level)
    torch.testing.assert_close(noisy, scheduler.add_noise(data, noise, time))
    assert torch.equal(target, noise)
    assert (time.diff() >= 0).all()
    assert weight.min() >= 1
    ratio = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    inside = (level > ratio[0].log()) & (level < ratio[-1].log())
    assert 20 <= inside.sum() <= 24  # the ends of the schedule are tried, too
    chosen = time[inside]
    assert (ratio[chosen].log() >= level[inside] - 1e-5).all()
    assert (ratio[chosen - 1].log() <= level[inside] + 1e-5).all()


def test_an_error_weighs_as_much_as_the_velocity_it_moves() -> None:
    torch.manual_seed(0)
    data, noise = torch.randn(2, 9, 3, 4, 4)
    scheduler = noise_schedule()
    noisy, time, _, weight = Epsilon(scheduler)(data, noise, torch.linspace(-2, 1.2, 9))
    signal = scheduler.alphas_cumprod[time].view(-1, 1, 1, 1)
    estimate = noise + 0.01
    picture = (noisy - (1 - signal).sqrt() * estimate) / signal.sqrt()
    moved = (estimate - picture) - (noise - data)
    torch.testing.assert_close(moved.square().mean((1, 2, 3)), 0.01**2 * weight, rtol=1e-3, atol=0)
    assert flow_matching(data, noise, torch.zeros(9)).weight.tolist() == [1] * 9


def test_the_command_line_takes_names_and_numbers_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a green 3 on a gray background"
    number = [scene.caption for scene in dit.classes()].index(name)
    for prompt in (name, str(number)):
        main(["generate", prompt, "--model", NAME, "--steps", "3", "-o", f"{prompt[:2].strip()}.png"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / f"{str(number)[:2]}.png").read_bytes()
    assert read_prompts(None, NAME, 48) == bundled.prompts("held-out", NAME)


def test_a_wrong_name_is_explained() -> None:
    with pytest.raises(ValueError, match=NAME):
        bundled.prompts("train", "dit")
    with pytest.raises(ValueError, match=NAME):
        bundled.renders_path("dit")
