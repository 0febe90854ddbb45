"""Accelerations of the bundled DiT and Stable Diffusion pipelines, on their trained weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from diffaccel import accelerate_pipeline
from diffaccel.denoisers import denoisers
from diffaccel.pipelines import bundled, image
from diffaccel.sites import levels

pytestmark = pytest.mark.parametrize("name", ["dit-digits", "sd-digits"])


@cache
def loaded(name: str) -> Any:
    pipe = bundled.load(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_removing_an_acceleration_restores_the_pictures_exactly(name: str) -> None:
    pipe, prompts = loaded(name), bundled.prompts("held-out", name)[:2]
    before = image.pictures(pipe, prompts, [0, 1], steps=12)
    [network] = denoisers(pipe).values()
    found = levels(network)
    assert found == ["sublayer", "block", "model", *(["deep"] if name == "sd-digits" else [])]
    for level in found:
        accelerate_pipeline(pipe, "taylorseer", interval=3, order=1, level=level)
        changed = image.pictures(pipe, prompts, [0, 1], steps=12)
        pipe.acceleration.remove()
        assert 0 < (changed - before).square().mean() < 1e-2, level  # 20 dB
    assert torch.equal(image.pictures(pipe, prompts, [0, 1], steps=12), before)


@pytest.mark.parametrize("method", ["hyca", "fitted"])
def test_there_is_a_calibration_for_the_recommended_steps(name: str, method: str) -> None:
    pipe, prompts = loaded(name), bundled.prompts("held-out", name)[:4]
    full = image.pictures(pipe, prompts, list(range(4)))
    accelerate_pipeline(pipe, method, interval=4)
    try:
        changed = image.pictures(pipe, prompts, list(range(4)))
    finally:
        pipe.acceleration.remove()
    assert 0 < (changed - full).square().mean() < 1e-3  # 30 dB
