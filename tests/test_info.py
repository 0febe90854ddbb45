"""Does `diffaccel info` find, from configuration files alone, the sites and the memory that runs really take?"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from diffaccel import accelerate_pipeline, blueprint
from diffaccel.cli import main
from diffaccel.memory import footprint
from tests.tiny import FAMILIES, TEXT_TOKENS

FLUX_DEV = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
DIT_XL_2 = {
    "_class_name": "DiTTransformer2DModel",
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 32,
    "patch_size": 2,
}
VAE_OF_FACTOR_8 = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]}


def write_configs(folder: Path, pipeline: str, denoiser: dict[str, Any], vae: dict[str, Any] = VAE_OF_FACTOR_8) -> Path:
    """A model folder without any weights."""
    index = {"_class_name": pipeline, "transformer": ["diffusers", denoiser["_class_name"]]}
    index["vae"] = ["diffusers", vae["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, config in (("transformer", denoiser), ("vae", vae)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def info(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main(["info", *map(str, arguments), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_flux_dev_takes_the_memory_that_follows_from_its_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_configs(tmp_path, "FluxPipeline", FLUX_DEV)
    found = info(capsys, folder, "--dtype", "bfloat16", "--order", 1, "--level", "sublayer")
    assert (found["height"], found["width"], found["text_tokens"], found["samples"]) == (1024, 1024, 512, 1)
    network = found["networks"]["transformer"]
    assert network["parameters"] == pytest.approx(11.9e9, rel=0.01)
    level = network["levels"]["sublayer"]
    assert len(level["sites"]) == 19 * 3 + 38
    assert level["features"] == 19 * 4 + 38 == 114
    # Double blocks: attention and MLP of 4096 + 512 tokens. Single blocks: one feature of all tokens. Two bytes each.
    assert level["bytes_per_anchor"] == (19 * 2 + 38) * (4096 + 512) * 3072 * 2
    assert level["bytes_per_anchor"] / 1e9 == pytest.approx(2.15, abs=0.005)
    assert level["bytes"] / 1e9 == pytest.approx(4.30, abs=0.005)
    # A single block returns two views of one tensor, which is kept once.
    assert network["levels"]["block"]["bytes_per_anchor"] == (19 + 38) * (4096 + 512) * 3072 * 2


def test_dit_xl_2_takes_the_memory_that_follows_from_its_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_configs(tmp_path, "DiTPipeline", DIT_XL_2)
    found = info(capsys, folder, "--level", "sublayer")
    assert (found["height"], found["width"], found["samples"]) == (256, 256, 2)
    level = found["networks"]["transformer"]["levels"]["sublayer"]
    assert level["bytes_per_anchor"] == 28 * 2 * 2 * 16**2 * 1152 * 4
    assert level["bytes_per_anchor"] / 1e9 == pytest.approx(0.13, abs=0.005)
    assert level["bytes"] == level["bytes_per_anchor"] * 5, "the preset of DiT is order 4"
    assert found["plan"][0][:4] == [0, 1, 5, 9]
    assert info(capsys, folder, "--guidance", 1)["samples"] == 1
    assert main(["info", str(folder), "--height", "512"]) == 2
    assert "DiTPipeline takes no height" in capsys.readouterr().err


@pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_is_what_a_run_holds(family: str, guidance: bool, tmp_path: Path, capsys: Any) -> None:
    pipe = FAMILIES[family].make()
    pipe.save_pretrained(tmp_path)
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    shape: list[object] = ["--batch", 2, "--guidance", 4 if guidance else 1, "--text-tokens", TEXT_TOKENS]
    if family == "flux":
        shape += ["--height", 32, "--width", 32]
    predicted = info(capsys, tmp_path, *shape, "--order", 2)
    for level in FAMILIES[family].levels:
        accelerate_pipeline(pipe, order=2, interval=2, warmup=3, level=level)
        FAMILIES[family].run(pipe, batch=2, guidance=guidance)
        report = pipe.acceleration.report()
        pipe.acceleration.remove()
        entry = predicted["networks"][FAMILIES[family].network]["levels"][level]
        assert entry["sites"] == [site.name for site in report.sites]
        assert entry["bytes"] == report.memory


@pytest.mark.parametrize("family", FAMILIES)
def test_footprint_on_meta_is_that_of_real_tensors_and_leaves_no_trace(family: str) -> None:
    network: Any = FAMILIES[family].denoiser(FAMILIES[family].make())
    shape = blueprint.Shape(batch=2, height=16, width=16, scale=1, text_tokens=5)
    real_inputs = blueprint.inputs(network, shape)
    # The values were never set: zeros are as good as any, and a valid class.
    for value in real_inputs.values():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            tensor.zero_()
    before = {name: dict(vars(module)) for name, module in network.named_modules()}
    real = {level: footprint(network, real_inputs, level) for level in FAMILIES[family].levels}
    assert {name: dict(vars(module)) for name, module in network.named_modules()} == before
    network.to("meta")
    assert {
        level: footprint(network, blueprint.inputs(network, shape), level) for level in FAMILIES[family].levels
    } == real


def test_other_classes_get_everything_but_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16}
    network = PixArtTransformer2DModel(**config, caption_channels=16, sample_size=8, norm_elementwise_affine=False)
    folder = write_configs(tmp_path, "PixArtSigmaPipeline", json.loads(network.to_json_string()))
    found = info(capsys, folder)["networks"]["transformer"]
    assert {level: len(entry["sites"]) for level, entry in found["levels"].items()} == {
        "sublayer": 9,
        "block": 3,
        "model": 1,
        "deep": 0,
    }
    assert "bytes" not in found["levels"]["block"]
    assert main(["info", str(folder)]) == 0
    assert "memory cannot be predicted: the inputs of PixArtTransformer2DModel are not known" in capsys.readouterr().out


def test_text_shows_plan_bound_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_configs(tmp_path, "FluxPipeline", FLUX_DEV | {"num_layers": 3, "num_single_layers": 4})
    options = ["--interval", "4", "--steps", "12", "--level", "sublayer", "--dtype", "float16"]
    assert main(["info", str(folder), *options]) == 0
    text = capsys.readouterr().out
    assert "all sites  ###...#...#." in text
    assert f"bound {12 / 5:.2f}x" in text
    assert "sublayer: transformer_blocks.0.attn to single_transformer_blocks.3.proj_out" in text
    assert "transformer_blocks.1.ff_context" not in text
    assert main(["info", str(folder), "--sites"]) == 0
    assert "transformer_blocks.1.ff_context" in capsys.readouterr().out


def test_hub_models_need_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nobody/nothing-of-this-name"]) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "status", "message"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), 2, "has no model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("{"), 1, "is not valid JSON"),
        (lambda folder: (folder / "transformer/config.json").unlink(), 1, "has no transformer/config.json"),
        (lambda folder: (folder / "model_index.json").write_text('{"_class_name": "MyPipeline"}'), 2, "'MyPipeline'"),
        (lambda folder: (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'), 2, "none of"),
    ],
)
def test_incomplete_folders_are_told_apart(
    spoil: Any, status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(write_configs(tmp_path, "DiTPipeline", DIT_XL_2))
    assert main(["info", str(tmp_path)]) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("diffaccel: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_building_takes_no_memory_for_weights(tmp_path: Path) -> None:
    write_configs(tmp_path, "DiTPipeline", DIT_XL_2)
    index = json.loads((tmp_path / "model_index.json").read_text())
    [network] = blueprint.denoisers(str(tmp_path), index, torch.bfloat16).values()
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


def test_a_schedule_that_the_calibration_decides_is_called_that(capsys: pytest.CaptureFixture[str]) -> None:
    line = "which ones the calibration decides"
    for method, told in (("fitted", True), ("fitted:schedule=even", False), ("hyca", False), ("taylorseer", False)):
        assert main(["info", "flux-digits", "--method", method]) == 0
        assert (line in capsys.readouterr().out) is told
