"""Are pictures what Dot should learn from: the same by index, cut in their middle, and as the network sees them?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel, VQModel
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from diffaccel.morse.dataset import BundledRenders, PictureFolder, clean_samples
from diffaccel.morse.renders import RENDERED
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits import ddpm, dit
from diffaccel.pipelines.bundled.digits.captions import Scene
from diffaccel.pipelines.bundled.digits.data import Renderer, scene_table
from tests.tiny import FAMILIES, unet


def save(file: Path, pixels: Any) -> Path:
    """A picture of these bytes [H, W] or [H, W, C]."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file)
    return file


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[k], other[k]) if k == "pixel_values" else one[k] == other[k] for k in (*one, *other))


# --- renders of the bundled pipelines ---


@pytest.mark.parametrize("name", RENDERED)
def test_a_render_depends_on_seed_and_index_only(name: str) -> None:
    data, again = BundledRenders(name, seed=3), BundledRenders(name, seed=3)
    batch = data.__getitems__([5, 2**20 - 1, 0, 5])
    assert same(batch[0], batch[3])
    assert not same(batch[0], batch[1])
    assert all(same(again[index], item) for index, item in zip([5, 2**20 - 1, 0], batch, strict=False))
    assert not same(BundledRenders(name, seed=4)[5], batch[0])
    state = torch.get_rng_state()
    data.__getitems__(list(range(8)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["flux-digits", "sd-digits"])
def test_renders_show_what_their_prompts_say(name: str) -> None:
    items = BundledRenders(name).__getitems__(list(range(200)))
    pictures = torch.stack([item["pixel_values"] for item in items])
    assert (pictures.shape, pictures.dtype) == ((200, 3, 32, 32), torch.float32)
    assert pictures.abs().max() <= 1
    prompts = [item["prompt"] for item in items]
    assert all(Scene.parse(prompt).split == "train" for prompt in prompts)
    assert 70 < sum(not Scene.parse(prompt).layout for prompt in prompts) < 130, "one digit half of the time"
    read = bundled.checker().read(pictures)
    assert sum(a == b for a, b in zip(read, prompts, strict=True)) >= 195


def test_classes_are_those_of_the_pipeline() -> None:
    items = BundledRenders("dit-digits").__getitems__(list(range(100)))
    labels = {number: scene.caption for number, scene in enumerate(dit.classes())}
    read = bundled.checker().read(torch.stack([item["pixel_values"] for item in items]))
    assert sum(a == labels[item["class_labels"]] for a, item in zip(read, items, strict=True)) >= 97
    assert len({item["class_labels"] for item in items}) > 60


def test_grey_renders_are_legible_and_of_all_digits() -> None:
    items = BundledRenders("ddpm-digits").__getitems__(list(range(300)))
    assert set(items[0]) == {"pixel_values"}
    pictures = torch.stack([item["pixel_values"] for item in items])
    assert pictures.shape == (300, 1, 16, 16)
    drawn = ddpm.GreyRenderer(Renderer("train")).batch(300)[0]
    ours, theirs = (ddpm.legibility(bundled.checker(), part) for part in (pictures, drawn))
    assert ours["legible"] > theirs["legible"] - 0.08
    assert ours["evenness"] > 0.97
    assert pictures.mean() == pytest.approx(float(drawn.mean()), abs=0.02)
    assert pictures.std() == pytest.approx(float(drawn.std()), rel=0.03)


def test_random_numbers_of_all_uses_are_independent_and_even() -> None:
    render = BundledRenders("flux-digits").render
    render.begin(0, list(range(4000)))
    columns = torch.cat([render.row, *render.items], dim=1)
    assert columns.shape == (4000, 6)
    assert (columns.mean(0) - 0.5).abs().max() < 0.02
    assert (columns.std(0) - 12**-0.5).abs().max() < 0.01
    assert (torch.corrcoef(columns.T) - torch.eye(6)).abs().max() < 0.06
    for numbers in (render.warps.angle, render.warps.shear):
        assert abs(float(numbers.mean())) < 0.04
        assert float(numbers.std()) == pytest.approx(1, abs=0.03)


def test_a_renderer_with_a_generator_draws_what_it_always_drew() -> None:
    render, table = (
        Renderer("train", seed=1),
        scene_table([Scene.parse("a red 7 above a blue 2 on a white background")]),
    )
    torch.manual_seed(2)
    pictures, warped = render.batch(table, 2)[0], render.warped(table)
    # Of before draws could be given.
    assert float(pictures.double().sum()) == pytest.approx(5135.3256, abs=1e-2)
    assert float(warped.double().sum()) == pytest.approx(171.9993, abs=1e-2)


def test_a_loader_gives_whole_batches() -> None:
    data = BundledRenders("flux-digits", length=7)
    batches = list(DataLoader(data, batch_size=4))
    assert [tuple(batch["pixel_values"].shape) for batch in batches] == [(4, 3, 32, 32), (3, 3, 32, 32)]
    assert torch.equal(batches[1]["pixel_values"][2], data[6]["pixel_values"])
    assert batches[1]["prompt"][2] == data[6]["prompt"]
    with pytest.raises(IndexError, match="there are 7 pictures, asked for number 7"):
        data[7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sdxl-digits"}, "is called 'sdxl-digits'; choose from flux-digits, dit-digits"),
        ({"name": "flux-digits", "length": 0}, "length must be at least 1"),
        ({"name": "flux-digits", "seed": -1}, "seed at least 0"),
    ],
)
def test_renders_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BundledRenders(**arguments)


# --- folders of pictures ---


def test_a_picture_of_the_right_size_keeps_its_values(tmp_path: Path) -> None:
    pixels = noise(6, 4, 3)
    save(tmp_path / "a.png", pixels)
    [item] = list(PictureFolder(tmp_path, (6, 4)))
    assert set(item) == {"pixel_values"}
    assert torch.equal(item["pixel_values"], torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1)


def test_the_middle_is_cut_out_and_the_shorter_side_fits(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40), np.uint8)
    pixels[:, 10:30] = 255
    save(tmp_path / "wide.png", pixels)
    save(tmp_path / "wide_and_large.png", pixels.repeat(3, 0).repeat(3, 1))
    save(tmp_path / "tall.png", pixels.T)
    data = PictureFolder(tmp_path, 20)
    names = [entry.file.stem for entry in data.entries]
    items = {name: data[k]["pixel_values"] for k, name in enumerate(names)}
    assert all(bool((items[name] == 1).all()) for name in ("wide", "tall"))
    assert bool((items["wide_and_large"][:, :, 1:-1] == 1).all()), "only the filter at the edge sees black"
    assert torch.equal(data[0]["pixel_values"], data[0]["pixel_values"])


def test_grey_of_red_is_its_brightness(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((5, 5, 3), (255, 0, 0)))
    grey = PictureFolder(tmp_path, 4, channels=1)[0]["pixel_values"]
    torch.testing.assert_close(grey, torch.full((1, 4, 4), 76 / 127.5 - 1))  # 0.299 of 255
    assert PictureFolder(tmp_path, 4)[0]["pixel_values"][:, 0, 0].tolist() == [1, -1, -1]


def test_captions_of_every_convention(tmp_path: Path) -> None:
    for name in ("b.png", "inner/a.jpg"):
        save(tmp_path / name, noise(4, 4, 3))
        (tmp_path / name).with_suffix(".txt").write_text(f"text of {name}\n")
    data = PictureFolder(tmp_path, 4, condition="prompt")
    assert [item["prompt"] for item in data] == ["text of b.png", "text of inner/a.jpg"]
    rows = [{"id": "0", "file": "b.png", "prompt": "made from this"}]
    (tmp_path / "manifest.json").write_text(json.dumps({"pictures": rows}))
    assert [item["prompt"] for item in PictureFolder(tmp_path, 4, condition="prompt")] == ["made from this"]
    (tmp_path / "manifest.json").unlink()
    rows = [{"file_name": "inner/a.jpg", "text": " one "}, {"file_name": "b.png", "prompt": "two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert [item["prompt"] for item in PictureFolder(tmp_path, 4, condition="prompt")] == ["two", "one"]


def test_classes_are_folders_by_label_or_number(tmp_path: Path) -> None:
    for name in ("a red 7/x.png", "12/deep/y.png", "3/z.png"):
        save(tmp_path / name, noise(4, 4, 3))
    data = PictureFolder(tmp_path, 4, condition="class_labels", labels={"a red 7": 40, "3": 5})
    assert [item["class_labels"] for item in data] == [12, 5, 40]


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (lambda _: None, {}, "there is no picture in"),
        (lambda at: save(at / "a.png", noise(4, 4, 3)), {"size": 0}, "at least 1 pixel a side, got 0 x 0"),
        (lambda at: save(at / "a.png", noise(4, 4, 3)), {"channels": 2}, "1 or 3 channels, not 2"),
        (
            lambda at: save(at / "a.png", noise(4, 4, 3)),
            {"condition": "prompt"},
            r"1 pictures have no caption \(a.png\)",
        ),
        (lambda at: save(at / "a.png", noise(4, 4, 3)), {"condition": "class_labels"}, "a.png is in no class"),
        (lambda at: save(at / "cat/a.png", noise(4, 4, 3)), {"condition": "class_labels"}, "pipeline names no classes"),
        (
            lambda at: save(at / "cat/a.png", noise(4, 4, 3)),
            {"condition": "class_labels", "labels": {"dog": 1}},
            "cat is no class: known are dog",
        ),
        (
            lambda at: (save(at / "a.png", noise(4, 4, 3)), (at / "metadata.jsonl").write_text('{"text": "a"}')),
            {"condition": "prompt"},
            "metadata.jsonl, line 1, is malformed",
        ),
        (
            lambda at: (save(at / "a.png", noise(4, 4, 3)), (at / "metadata.jsonl").write_text("")),
            {"condition": "prompt"},
            "give each a line in",
        ),
        (
            lambda at: (at / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "b"}'),
            {"condition": "prompt"},
            "there is no picture in",
        ),
        (
            lambda at: (
                save(at / "a.png", noise(4, 4, 3)),
                (at / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "b"}'),
            ),
            {"condition": "prompt"},
            r"lists 1 pictures that are not there \(b.png\)",
        ),
        (lambda at: (at / "a.png").write_text("no picture"), {}, "cannot read the picture .*a.png"),
    ],
)
def test_folders_that_cannot_be_trained_on(prepare: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises((OSError, ValueError), match=message):
        PictureFolder(tmp_path, **{"size": 4, **options})


def test_no_folder_and_a_picture_cut_short(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        PictureFolder(tmp_path / "nowhere", 4)
    file = save(tmp_path / "a.png", noise(64, 64, 3))
    file.write_bytes(file.read_bytes()[:3000])
    data = PictureFolder(tmp_path, 4)
    with pytest.raises(OSError, match=r"cannot read the picture .*a.png"):
        data[0]


def test_a_pipeline_says_size_channels_and_condition(tmp_path: Path) -> None:
    save(tmp_path / "a red 7 on a white background" / "a.png", noise(50, 40, 3))
    pipe = bundled.load("dit-digits")
    [item] = list(PictureFolder.of(pipe, tmp_path))
    assert item["pixel_values"].shape == (3, 32, 32)
    assert item["class_labels"] == pipe.get_label_ids(["a red 7 on a white background"])[0]
    (tmp_path / "a red 7 on a white background" / "a.txt").write_text("seven")
    [item] = list(PictureFolder.of(bundled.load("flux-digits"), tmp_path))
    assert item["pixel_values"].shape == (3, 32, 32)
    assert item["prompt"] == "seven"
    [item] = list(PictureFolder.of(_grey(), tmp_path))
    assert set(item) == {"pixel_values"}
    assert item["pixel_values"].shape == (1, 16, 16)
    assert PictureFolder.of(_grey(), tmp_path, (8, 24))[0]["pixel_values"].shape == (1, 8, 24)


# --- clean samples ---


def _grey() -> DDPMPipeline:
    network = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    )
    return DDPMPipeline(network, DDIMScheduler())


def pictures(*shape: int) -> Tensor:
    return 2 * torch.rand(shape) - 1


@pytest.mark.parametrize("name", ["flux-digits", "dit-digits", "sd-digits"])
def test_clean_samples_decode_to_the_pictures(name: str) -> None:
    pipe = bundled.load(name)
    batch = default_collate(BundledRenders(name).__getitems__(list(range(16))))
    samples = clean_samples(pipe, batch)
    assert not samples.requires_grad
    assert float(samples.std()) == pytest.approx(1, abs=0.1), "latents as the network was trained on"
    if name == "flux-digits":
        assert samples.shape == (16, 16, 48)
        samples = pipe._unpack_latents(samples, 32, 32, pipe.vae_scale_factor)
    with torch.no_grad():
        decoded = pipe.vae.decode(samples / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (decoded - batch["pixel_values"]).square().mean())
    assert psnr > 33


def test_a_kl_autoencoder_gives_its_mode_scaled() -> None:
    pipe, given = FAMILIES["sd"].make(), pictures(2, 3, 8, 8)
    mode = pipe.vae.encode(given).latent_dist.mode().detach()
    samples = clean_samples(pipe, {"pixel_values": given})
    assert torch.equal(samples, mode * pipe.vae.config.scaling_factor)
    assert torch.equal(samples, clean_samples(pipe, {"pixel_values": given}))
    pipe.vae.register_to_config(shift_factor=0.25)
    torch.testing.assert_close(clean_samples(pipe, {"pixel_values": given}), (mode - 0.25) * 0.18215)
    pipe.vae.register_to_config(latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 4, 8], scaling_factor=0.5)
    mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in ([1.0, 2, 3, 4], [1.0, 2, 4, 8]))
    torch.testing.assert_close(clean_samples(pipe, {"pixel_values": given}), (mode - mean) * 0.5 / std)


def test_latents_and_packing() -> None:
    flux, latents = FAMILIES["flux"].make(), torch.randn(2, 4, 6, 8)
    packed = clean_samples(flux, {"latents": latents})
    assert packed.shape == (2, 12, 16)
    assert torch.equal(flux._unpack_latents(packed, 24, 32, 4), latents)
    assert torch.equal(clean_samples(flux, {"latents": packed}), packed)
    sd = FAMILIES["sd"].make().to(torch.bfloat16)
    assert torch.equal(clean_samples(sd, {"latents": latents}), latents.bfloat16())


def test_pixels_are_given_as_they_are() -> None:
    given = pictures(2, 1, 16, 16)
    assert torch.equal(clean_samples(_grey(), {"pixel_values": given}), given)


def _with_vq() -> Any:
    pipe = FAMILIES["sd"].make()
    pipe.vae = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    return pipe


def _loud() -> Any:
    pipe = FAMILIES["sd"].make()
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight.mul_(1e5)
    pipe.vae.half()
    return pipe


def _inpainting() -> Any:
    pipe = FAMILIES["sd"].make()
    pipe.unet = unet(in_channels=9)
    return pipe


def _packed_otherwise() -> Any:
    pipe = FAMILIES["flux"].make()
    pipe._pack_latents = lambda latents, patch_size: latents
    return pipe


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (FAMILIES["sd"].make, {"prompt": ["a"]}, 'a batch holds prompt: it needs "pixel_values" or "latents"'),
        (
            FAMILIES["sd"].make,
            {"pixel_values": pictures(1, 1, 8, 8)},
            r"takes pictures \[B, 3, H, W\], got \[1, 1, 8, 8\]",
        ),
        (_with_vq, {"pixel_values": pictures(1, 3, 8, 8)}, "latents of its VQModel is not known"),
        (_loud, {"pixel_values": pictures(1, 3, 8, 8)}, "out of range in torch.float16: use it in float32"),
        (_inpainting, {"pixel_values": pictures(1, 3, 8, 8)}, "takes samples of 9 channels"),
        (_grey, {"pixel_values": pictures(1, 3, 16, 16)}, "takes samples of 1 channels"),
        (_grey, {"pixel_values": pictures(1, 1, 16, 18)}, "halves samples to 1/4"),
        (FAMILIES["dit"].make, {"pixel_values": pictures(1, 3, 16, 16)}, "takes 8 x 8 samples"),
        (FAMILIES["flux"].make, {"latents": torch.randn(1, 4, 6, 7)}, "6 x 7 of them cannot be packed"),
        (FAMILIES["flux"].make, {"latents": torch.randn(1, 12, 17)}, "takes samples of 16 channels"),
        (_packed_otherwise, {"latents": torch.randn(1, 4, 6, 8)}, 'packs latents is not known: give "latents" packed'),
        (DDIMScheduler, {}, "DDIMScheduler has no network that removes noise"),
    ],
)
def test_batches_that_do_not_fit(make: Any, batch: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clean_samples(make(), batch)
