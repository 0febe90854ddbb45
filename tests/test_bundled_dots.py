"""The Dots that are shipped: do they fit their pipelines, hold none of their weights, and earn what their cards say?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffaccel import accelerate_pipeline
from diffaccel.morse import MorseDot
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits import ddpm
from diffaccel.pipelines.bundled.digits.train_dots import DOTS

SHIPPED = [(name, dot) for name in ("ddpm-digits", "sd-digits", "flux-digits") for dot in bundled.dots(name)]


def test_every_pipeline_that_was_trained_for_has_dots() -> None:
    assert {name for name, _ in SHIPPED} == {"ddpm-digits", "sd-digits", "flux-digits"}
    for name, dot in SHIPPED:
        assert DOTS[f"{name.partition('-')[0]}-{dot}"].pipeline == name


@pytest.mark.parametrize(("name", "dot"), SHIPPED)
def test_a_dot_fits_its_pipeline_and_says_what_it_was_trained_on(name: str, dot: str) -> None:
    loaded = MorseDot.from_pretrained(bundled.dot_path(name, dot))
    pipe = bundled.load(name)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    loaded.attach(network)
    file = bundled.dot_path(name, dot) / "diffusion_pytorch_model.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    assert file.stat().st_size < 3e6
    recipe = DOTS[f"{name.partition('-')[0]}-{dot}"]
    assert loaded.config.pair_sampling == recipe.pairs
    assert loaded.config.ratio["n"] > 1
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in network.parameters())


def test_no_such_dot_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="own-uniform"):
        bundled.dot_path("sd-digits", "none")
    with pytest.raises(ValueError, match="it has none"):
        bundled.dot_path("dit-digits", "own-uniform")


@torch.no_grad()
def test_a_dot_brings_a_run_nearer_to_the_converged_one_than_its_dash_steps_alone() -> None:
    pipe = ddpm.deterministic(bundled.load("ddpm-digits"))

    def draw(steps: int) -> Tensor:
        return ddpm.draw(pipe, 32, steps)

    reference, alone = draw(50), draw(4)
    accelerate_pipeline(pipe, "morse", dot=bundled.dot_path("ddpm-digits", "own-even"), dots_per_dash=2, ratio=3.0)
    with_dot = draw(12)
    report: Any = pipe.acceleration.report()
    assert (report.dash, report.dot) == (4, 8)

    def error(pictures: Tensor) -> float:
        return float((pictures - reference).square().mean().sqrt())

    assert error(with_dot) < 0.8 * error(alone)
