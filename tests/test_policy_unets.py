"""Is the UNet of diffusion policies cut below its last level, and does that part hold while the rest computes?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffaccel import accelerate_pipeline
from diffaccel.pipelines.policies.normalizer import LinearNormalizer
from diffaccel.pipelines.policy import PolicyPipeline
from diffaccel.sites import levels
from diffaccel.structure import deep_branch
from tests.policies import ACTION, EXECUTED, HORIZON, OBSERVATION, OBSERVED, ConditionalUnet1D, unet_policy


@pytest.mark.parametrize(("widths", "cut"), [((16, 32), "mid_modules.1"), ((16, 32, 48), "up_modules.0.2")])
def test_a_unet_of_one_dimension_is_cut_below_its_last_level(widths: tuple[int, ...], cut: str) -> None:
    network = ConditionalUnet1D(ACTION, OBSERVED * OBSERVATION, widths)
    (name, module), idle = deep_branch(network)
    assert (name, module) == (cut, network.get_submodule(cut))
    assert levels(network) == ["deep"]
    # What leads to the cut: the last down level that is joined is only resampled below it.
    names = {part: name for name, part in network.named_modules()}
    assert names[idle[0]] == "down_modules.1.2"
    assert not {"down_modules.0.0", "down_modules.1.1", "final_conv", "up_modules.1.0"} & {names[part] for part in idle}
    assert deep_branch(ConditionalUnet1D(ACTION, 12, (16,))) is None


def held_unet(net: ConditionalUnet1D, x: Tensor, t: Tensor, cond: Tensor, held: Tensor | None) -> tuple[Tensor, Tensor]:
    """The network of three levels with its deep feature `held`, or its own: output and feature."""
    features = torch.cat([net.diffusion_step_encoder(t), cond], -1)
    (first, second, down), (third, fourth, lower), (fifth, sixth, last) = net.down_modules
    x = down(second(first(x.transpose(1, 2), features), features))
    skip = fourth(third(x, features), features)
    if held is None:
        deep = sixth(fifth(lower(skip), features), features)
        held = last(deep)
        for mid in net.mid_modules:
            held = mid(held, features)
        one, two, up = net.up_modules[0]
        held = up(two(one(torch.cat([held, deep], 1), features), features))
    one, two, up = net.up_modules[1]
    output = up(two(one(torch.cat([held, skip], 1), features), features))
    return net.final_conv(output).transpose(1, 2), held


def test_a_unet_policy_holds_its_deep_feature() -> None:
    policy = unet_policy()
    normalizer = LinearNormalizer(OBSERVATION, ACTION)
    pipe = PolicyPipeline(policy.model, policy.noise_scheduler, normalizer, HORIZON, OBSERVED, EXECUTED)
    given = torch.randn(2, OBSERVED, OBSERVATION)
    accelerate_pipeline(pipe, "taylorseer", interval=4, order=0, warmup=1, level="deep")
    found = pipe(given, 10, torch.Generator().manual_seed(1)).trajectory
    rows = pipe.acceleration.plan.rows[0]
    pipe.acceleration.remove()

    generator = torch.Generator().manual_seed(1)
    x, held = torch.randn(2, HORIZON, ACTION, generator=generator), None
    pipe.scheduler.set_timesteps(10)
    with torch.no_grad():
        for computes, t in zip(rows, pipe.scheduler.timesteps, strict=True):
            time = t.expand(2)
            predicted, held = held_unet(policy.model, x, time, given.flatten(1), None if computes else held)
            x = pipe.scheduler.step(predicted, t, x, generator=generator).prev_sample
    assert torch.equal(found, x)
    assert not torch.equal(found, pipe(given, 10, torch.Generator().manual_seed(1)).trajectory)
