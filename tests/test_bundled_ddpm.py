"""Is the bundled unconditional pipeline a genuine, trained one that draws digits, and kept from what needs prompts?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from diffaccel.cli import main
from diffaccel.metrics import statistics
from diffaccel.metrics.extractor import load_extractor
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits import ddpm
from diffaccel.pipelines.bundled.digits.data import Renderer
from diffaccel.pipelines.bundled.digits.evaluate import MARK
from diffaccel.pipelines.bundled.digits.evaluate_ddpm import table

NAME = "ddpm-digits"


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipeline = bundled.load(NAME)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_every_part_is_the_real_class_in_float32(pipe: Any) -> None:
    assert type(pipe) is DDPMPipeline
    assert type(pipe.unet) is UNet2DModel
    assert type(pipe.scheduler) is DDPMScheduler
    assert {parameter.dtype for parameter in pipe.unet.parameters()} == {torch.float32}
    assert not pipe.unet.training


def test_files_hold_float16_and_stay_small() -> None:
    folder = bundled.path(NAME)
    weights = sorted(folder.glob("*/*.safetensors"))
    assert [file.parent.name for file in weights] == ["unet"]
    assert {tensor.dtype for tensor in load_file(weights[0]).values()} == {torch.float16}
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and "dots" not in file.parts) < 5e6


def test_digits_of_all_kinds_are_drawn_that_can_be_read(pipe: Any) -> None:
    drawn = ddpm.draw(ddpm.deterministic(pipe), 96, steps=20, seed=3)
    assert drawn.shape == (96, 1, 16, 16)
    found = ddpm.legibility(bundled.checker(), drawn)
    assert found["legible"] > 0.2  # noise: .03; renders of held-out handwriting: .83
    assert found["evenness"] > 0.85


def test_noise_cannot_be_read_and_handwriting_can() -> None:
    checker, noise = bundled.checker(), torch.rand(64, 1, 16, 16) * 2 - 1
    assert ddpm.legibility(checker, noise)["legible"] < 0.1
    handwriting, digits = ddpm.GreyRenderer(Renderer("held-out", 0)).batch(64)
    assert ddpm.legibility(checker, handwriting)["legible"] > 0.7
    read = checker(ddpm.coloured(handwriting))[1].argmax(1)
    assert (read == digits).float().mean() > 0.9


def test_a_solver_without_noise_gives_one_picture_for_one_noise(pipe: Any) -> None:
    solver = ddpm.deterministic(pipe)
    again = ddpm.draw(solver, 4, steps=50, seed=1)
    assert torch.equal(ddpm.draw(solver, 4, steps=50, seed=1), again)
    few = ddpm.draw(solver, 4, steps=10, seed=1)
    assert (few - again).square().mean().sqrt() < 0.15  # of pictures of deviation .7


def test_pictures_are_grey_and_the_call_needs_no_prompt(pipe: Any) -> None:
    images = pipe(batch_size=2, **bundled.call_defaults(NAME) | {"num_inference_steps": 2}).images
    assert [(image.mode, image.size) for image in images] == [("L", (16, 16))] * 2
    assert bundled.call_defaults(NAME) == ddpm.call_defaults()


def test_a_new_unet_predicts_nothing() -> None:
    unet = ddpm.build_unet()
    assert unet(torch.randn(2, 1, 16, 16), 500).sample.abs().max() == 0


def test_it_is_none_of_those_that_take_prompts() -> None:
    assert NAME in bundled.UNCONDITIONAL
    assert NAME not in bundled.NAMES
    with pytest.raises(ValueError, match="takes prompts"):
        bundled.prompts("held-out", NAME)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a red 7 on a white background", "--model", NAME],
        ["evaluate", "--model", NAME, "--method", "taylorseer", "--prompts", "prompts.txt"],
        ["calibrate", NAME, "--steps", "10", "--prompts", "prompts.txt"],
    ],
)
def test_commands_that_need_prompts_say_so(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red 7\n")
    assert main(arguments) != 0
    assert "does not make pictures from prompts or class labels alone" in capsys.readouterr().err


def test_reference_is_of_the_shipped_checker_and_of_grey_handwriting() -> None:
    reference = statistics.load(bundled.renders_path(NAME))
    statistics.check(reference, load_extractor("fd_digits").identity)
    assert reference.n == 20_000
    assert bundled.renders_path(NAME) != bundled.renders_path("dit-digits")


def test_model_card_shows_the_measured_gates_and_they_hold() -> None:
    folder = bundled.path(NAME)
    rows = json.loads((folder / "gates.json").read_text())
    assert (folder / "README.md").read_text().split(MARK)[1].strip() == table(rows)
    by_name = {row["what"]: row for row in rows}
    real = by_name["held-out handwriting (seed 0)"]
    for steps in (20, 50):
        drawn = by_name[f"generator, DDIM, {steps} steps (seed 0)"]
        assert drawn["n"] >= 1000
        assert real["legible 0.9"] > drawn["legible 0.9"] > 0.3
        assert drawn["evenness"] > 0.95
