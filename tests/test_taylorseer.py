"""Is it TaylorSeer? Against a hand-made recursion on hooks, and against diffusers' own implementation."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from diffusers import TaylorSeerCacheConfig
from torch import Tensor, nn

from diffaccel import METHODS, Plan, TaylorSeer, accelerate_pipeline
from diffaccel.methods.taylorseer import PRESETS
from diffaccel.sites import sites
from tests import tiny


class Recursion:
    """The official recursion as a forward hook: modules always run, on skipped steps their output is replaced."""

    def __init__(self, computed: list[int], order: int, first_enhance: int) -> None:
        self.computed, self.order, self.first_enhance = computed, order, first_enhance
        self.step, self.last = -1, 0
        self.derivatives: dict[str, list[Tensor]] = {}

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.step += 1
        result = self.follow("output", output)
        if self.step in self.computed:
            self.last = self.step
        return result

    def follow(self, part: str, fresh: Any) -> Any:
        if isinstance(fresh, tuple):
            return tuple(self.follow(f"{part}.{i}", each) for i, each in enumerate(fresh))
        old = self.derivatives.get(part, [])
        if self.step in self.computed:
            new = [fresh]
            for i in range(self.order):
                if i >= len(old) or self.step <= self.first_enhance - 2:
                    break
                new.append((new[i] - old[i]) / (self.step - self.last))
            self.derivatives[part] = new
            return fresh
        x = self.step - self.last
        return sum(d * x**i / math.factorial(i) for i, d in enumerate(old))  # type: ignore[return-value]


@pytest.mark.parametrize("family", ["flux", "dit", "sd"])
@pytest.mark.parametrize("level", ["sublayer", "block", "model"])
@pytest.mark.parametrize(("interval", "order", "warmup"), [(3, 0, 1), (4, 1, 3), (3, 2, 3), (4, 3, 2)])
def test_equal_to_the_official_recursion(family: str, level: str, interval: int, order: int, warmup: int) -> None:
    kind, steps = tiny.FAMILIES[family], 14
    pipe = kind.make()
    network = kind.denoiser(pipe).double()
    run = {"steps": steps, "seed": 2}
    pipe.vae.double()
    computed = Plan.every(interval, steps, warmup).computed()
    handles = [site.owner.register_forward_hook(Recursion(computed, order, warmup)) for site in sites(network, level)]
    with as_doubles():
        expected = kind.run(pipe, **run)
        for handle in handles:
            handle.remove()
        plain = kind.run(pipe, **run)
        accelerate_pipeline(pipe, TaylorSeer(interval, order, warmup, level=level))
        result = kind.run(pipe, **run)
    assert (expected - plain).abs().max() > 1e-4
    assert (result - expected).abs().max() <= 1e-9 * plain.abs().max()


class as_doubles:  # noqa: N801 (reads as a statement)
    """Have the toy inputs drawn in float64."""

    def __enter__(self) -> None:
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("level", ["sublayer", "block"])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("guidance", [False, True])
def test_no_difference_to_diffusers_when_configured_alike(level: str, order: int, guidance: bool) -> None:
    patterns = {
        "sublayer": [r"transformer_blocks\.\d+\.(attn|ff|ff_context)", r"single_transformer_blocks\.\d+\.proj_out"],
        "block": [r"(single_)?transformer_blocks\.\d+"],
    }
    interval, steps, before = 3, 14, 2
    pipe = tiny.flux()
    plain = tiny.run_flux(pipe, steps=steps, guidance=guidance)
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=before,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=patterns[level],
    )
    pipe.transformer.enable_cache(config)
    expected = tiny.run_flux(pipe, steps=steps, guidance=guidance)
    pipe.transformer.disable_cache()
    # diffusers forms differences from the second step on, which is what a warm-up of 1 or 2 does here.
    schedule = Plan.diffusers(interval, steps, before)
    accelerate_pipeline(pipe, TaylorSeer(order=order, warmup=1, level=level, schedule=schedule))
    result = tiny.run_flux(pipe, steps=steps, guidance=guidance)
    assert (expected - plain).norm() > 1e-3 * plain.norm()
    # Equal but for the order of float32 operations.
    assert (result - expected).norm() <= 2e-5 * plain.norm()


def test_last_computes_one_step_more() -> None:
    plans = [TaylorSeer(4, last=last).plan([], 28).computed() for last in (False, True)]
    assert plans[1] == [*plans[0], 27]


def test_newton_differs_where_spacing_changes() -> None:
    pipe = tiny.flux()
    results = []
    for forecast in ("taylor", "newton"):
        accelerate_pipeline(pipe, TaylorSeer(3, 2, 3, forecast=forecast))
        results.append(tiny.run_flux(pipe, steps=12))
        pipe.acceleration.remove()
    assert not torch.equal(*results)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_of_pipelines_that_exist(name: str) -> None:
    assert hasattr(diffusers, name)
    method = METHODS["taylorseer"].preset(name, interval=9)
    assert method == TaylorSeer(**{**PRESETS[name], "interval": 9})


def test_a_name_takes_the_preset_of_the_pipeline() -> None:
    pipe = accelerate_pipeline(tiny.flux(), "taylorseer", order=2)
    assert pipe.acceleration.method == TaylorSeer(interval=6, order=2, warmup=3)
    # What the official FLUX code computes of 50 steps.
    assert METHODS["taylorseer"].preset("FluxPipeline").plan([], 50).computed() == [0, 1, 2, *range(8, 50, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval must be a whole number of at least 1, got 0"),
        ({"interval": 2.5}, "interval must be a whole number"),
        ({"interval": True}, "interval must be a whole number"),
        ({"order": -1}, "order must be a whole number of at least 0"),
        ({"warmup": 0}, "warmup must be a whole number of at least 1"),
        ({"forecast": "spline"}, "unknown forecast 'spline': choose one of taylor, newton"),
        ({"schedule": [0, 3]}, r"schedule must be a diffaccel\.plan\.Plan"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaylorSeer(**options)
