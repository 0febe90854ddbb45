"""Configurations of diffusers' caches: the same results, or an error that says what to use instead."""

from __future__ import annotations

import logging
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

from diffaccel import FirstBlock, Plan, TaylorSeer, accelerate, accelerate_pipeline
from diffaccel.sites import sites
from tests import tiny


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(("interval", "before", "after"), [(5, 3, None), (3, 1, None), (4, 2, 9)])
@pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guided"])
def test_lite_mode_gives_what_diffusers_gives(
    order: int, interval: int, before: int, after: int | None, guidance: bool
) -> None:
    steps, pipe = 14, tiny.flux()
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=before,
        disable_cache_after_step=after,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )
    plain = tiny.run_flux(pipe, steps=steps, guidance=guidance)
    pipe.transformer.enable_cache(config)
    expected = tiny.run_flux(pipe, steps=steps, guidance=guidance)
    pipe.transformer.disable_cache()
    accelerate_pipeline(pipe, config)
    result = tiny.run_flux(pipe, steps=steps, guidance=guidance)
    assert (expected - plain).norm() > 1e-3 * plain.norm()
    # Equal but for the order of float32 operations.
    assert (result - expected).norm() <= 2e-5 * plain.norm()


def test_the_default_configuration_says_where_it_differs(caplog: pytest.LogCaptureFixture) -> None:
    pipe = accelerate_pipeline(tiny.flux(), TaylorSeerCacheConfig())
    assert pipe.acceleration.method == TaylorSeer(5, 1, 3, level="sublayer", schedule="diffusers")
    assert "MLPs as well here" in caplog.text
    assert "use_lite_mode=True" in caplog.text
    tiny.run_flux(pipe, steps=20)
    assert pipe.acceleration.plan.computed() == [0, 1, 2, 4, 9, 14, 19]


def test_lite_mode_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffaccel"):
        accelerate_pipeline(tiny.flux(), TaylorSeerCacheConfig(use_lite_mode=True))
    assert caplog.text == ""


def test_options_change_a_configuration() -> None:
    pipe = accelerate_pipeline(tiny.flux(), TaylorSeerCacheConfig(use_lite_mode=True), order=2, last=True)
    assert pipe.acceleration.method == TaylorSeer(5, 2, 3, level="output", schedule="diffusers", last=True)
    with accelerate(tiny.flux_transformer(), FirstBlockCacheConfig(threshold=0.2), steps=8, order=1) as acceleration:
        assert acceleration.method == FirstBlock(0.2, order=1)


def test_schedule_of_diffusers_has_the_steps_after_it() -> None:
    method = TaylorSeer(4, schedule="diffusers", warmup=2, after=9)
    assert method.plan([], 14).computed() == [0, 1, 3, 7, 9, 10, 11, 12, 13]
    assert TaylorSeer(4, warmup=2, after=9).plan([], 12).computed() == [0, 1, 5, 9, 10, 11]
    assert TaylorSeer(4, after=0).plan([], 5) == Plan.every(1, 5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TaylorSeerCacheConfig(cache_identifiers=["blocks.*"]), r'cache_identifiers .*TaylorSeer\(level="sublayer"\)'),
        (TaylorSeerCacheConfig(skip_predict_identifiers=[]), "skip_predict_identifiers chooses modules by their names"),
        (
            TaylorSeerCacheConfig(cache_identifiers=["a"], use_lite_mode=True),
            "cache_identifiers chooses modules by their names",
        ),
        (TaylorSeerCacheConfig(taylor_factors_dtype=torch.float16), "taylor_factors_dtype=torch.float16 cannot be had"),
        (TaylorSeerCacheConfig(disable_cache_before_step=0), "disable_cache_before_step must be at least 1"),
        (TaylorSeerCacheConfig(cache_interval=0), "interval must be a whole number of at least 1"),
        (FirstBlockCacheConfig(threshold=-1), "threshold must be a number of at least 0"),
        (diffusers.MagCacheConfig(num_inference_steps=4, mag_ratios=[1.0] * 4), r"no MagCacheConfig.*FirstBlock\("),
        (
            diffusers.FasterCacheConfig(),
            r"no FasterCacheConfig, it takes TaylorSeerCacheConfig and FirstBlock.*nearest",
        ),
    ],
)
def test_refused_and_left_alone(config: Any, message: str) -> None:
    pipe = tiny.flux()
    before = dict(vars(pipe.transformer))
    with pytest.raises(ValueError, match=message):
        accelerate_pipeline(pipe, config)
    assert vars(pipe.transformer) == before
    assert not hasattr(pipe, "acceleration")


def test_lite_mode_without_its_module_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"UNet2DConditionModel ends neither in a proj_out nor in a head.*level='model'"
    ):
        accelerate_pipeline(tiny.stable_diffusion(), TaylorSeerCacheConfig(use_lite_mode=True))


def test_all_projections_at_the_end_are_forecast() -> None:
    """A DiT ends in two: the first makes shift and scale, the second the result."""
    network = tiny.dit().transformer
    first, second = sites(network, "output")
    assert (first.name, second.name) == ("proj_out_1", "proj_out_2")
    assert first.idle == tuple(network.transformer_blocks)
    pipe = accelerate_pipeline(tiny.dit(), "taylorseer", level="output", interval=3)
    assert tiny.run_dit(pipe).isfinite().all()
