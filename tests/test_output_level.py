"""Level "output" on policies: one site, all before it idle, and forecasts by hand of what the network returns."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffaccel import accelerate_pipeline
from diffaccel.calibration import Calibration, record
from diffaccel.forecast import Taylor
from diffaccel.methods.fitted import Fitted
from diffaccel.pipelines.policy import PolicyPipeline
from diffaccel.sites import sites
from tests.innovation_reference import OBSERVATIONS, STEPS, Following, act, generators, network, robot
from tests.policies import OBSERVATION, OBSERVED, bert_policy
from tests.policy_transformers import DiffusionTransformer, randomize
from tests.policy_unets import ConditionalUnet1D
from tests.test_contract import count_forwards, same, traces
from tests.tiny import flux_transformer

METHODS: dict[str, dict[str, Any]] = {
    "taylorseer": {"interval": 4, "order": 1, "warmup": 2},
    "fitted": {"computed": 5, "anchors": 2, "feedback": 0.0, "calibration": OBSERVATIONS},
}
methods = pytest.mark.parametrize("method", METHODS)


def accelerated(method: str, made: nn.Module | None = None, **options: Any) -> PolicyPipeline:
    pipe = robot("ddpm", made)
    return accelerate_pipeline(pipe, method, level="output", **{**METHODS[method], **options})


@pytest.mark.parametrize("made", [network, lambda: bert_policy().model], ids=["decoder", "bert"])
def test_policies_end_in_a_head_and_all_else_is_idle(made: Any) -> None:
    found = made()
    (site,) = sites(found, "output")
    assert (site.name, site.owner) == ("head", found.head)
    assert {id(module) for module in site.idle} == {id(part) for part in found.children() if part is not found.head}


def rotary() -> nn.Module:
    """Of lerobot's kind, which ends in an `output_proj` and takes all observations as one vector."""
    made = randomize(DiffusionTransformer(3, OBSERVED * OBSERVATION, layers=2))
    made.output_proj.weight.data.mul_(0.1)
    return made


def test_policies_of_lerobots_kind_end_in_a_projection() -> None:
    made = rotary()
    (site,) = sites(made, "output")
    assert site.owner is made.output_proj
    assert list(site.idle) == [made.time_mlp, made.input_proj, *made.transformer_blocks]  # type: ignore[misc]
    pipe = robot("ddpm", made)
    full = act(pipe)
    accelerate_pipeline(pipe, "innovation", calibration=OBSERVATIONS, computed=8)
    assert (act(pipe) - full).abs().max() < full.abs().max()


def test_lists_are_idle_by_what_they_hold() -> None:
    """A list is never called, so nothing would be skipped if it were idle itself."""
    made = Following()
    made.blocks.append(nn.ModuleDict({"inner": nn.Linear(3, 3)}))  # type: ignore[arg-type]
    (site,) = sites(made, "output")
    assert list(site.idle) == [made.blocks[0], made.blocks[1]["inner"]]  # type: ignore[index]


def test_pictures_keep_their_embeddings() -> None:
    made = flux_transformer()
    (site,) = sites(made, "output")
    assert site.owner is made.proj_out
    assert list(site.idle) == [*made.transformer_blocks, *made.single_transformer_blocks]


def test_networks_that_end_otherwise_are_told_of_level_model() -> None:
    other = nn.Sequential(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 1), 1, enable_nested_tensor=False))
    with pytest.raises(ValueError, match=r"ends neither in a proj_out nor in a head.*choose level='model'"):
        sites(other, "output")
    with pytest.raises(ValueError, match="no output site was found in ConditionalUnet1D"):
        sites(ConditionalUnet1D(3, 12), "output")


@methods
@pytest.mark.parametrize("made", [network, Following, rotary], ids=["transformer", "list", "rotary"])
def test_skipped_steps_run_nothing_of_the_network(method: str, made: Any) -> None:
    found = made()
    calls: Counter[str] = Counter()
    for name, module in found.named_modules():
        if name and not list(module.children()):
            count_forwards(module, name, calls)
    act(robot("ddpm", found))
    uncached = Counter(calls)
    pipe = accelerated(method, found)
    calls.clear()
    assert act(pipe).isfinite().all()
    computed = len(pipe.acceleration.plan.computed())
    assert 3 <= computed <= 6
    assert uncached
    assert all(STEPS * calls[name] == computed * uncached[name] for name in uncached)


def loop(pipe: PolicyPipeline, computed: list[int], weights: Any) -> Tensor:
    """What `act` returns if outputs are forecast from those of computed steps, worked out one by one."""
    each = generators(range(70, 73))
    given, x = pipe.conditioning(OBSERVATIONS[:3]), pipe.noise(3, each)
    pipe.scheduler.set_timesteps(STEPS)
    kept: list[tuple[int, Tensor]] = []
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            if step in computed:
                output = pipe.denoiser(x, t.expand(3), **given)
                kept = [(step, output), *kept[:1]]
            else:
                w = weights([float(time) for time, _ in kept], float(step))
                output = sum((float(one) * held for one, (_, held) in zip(w, kept, strict=True)), torch.zeros(()))
            x = pipe.scheduler.step(output, t, x, generator=each, return_dict=False)[0]
    return pipe.normalizer.unnormalized_action(x)


def test_outputs_are_forecast_along_the_line_by_taylorseer() -> None:
    pipe = accelerated("taylorseer")
    found, computed = act(pipe), pipe.acceleration.plan.computed()
    pipe.acceleration.remove()
    assert computed == [0, 1, 5, 9]
    torch.testing.assert_close(found, loop(pipe, computed, Taylor(1).weights), rtol=1e-4, atol=1e-4)


def test_outputs_are_held_by_order_0() -> None:
    pipe = accelerated("taylorseer", order=0)
    found, computed = act(pipe), pipe.acceleration.plan.computed()
    pipe.acceleration.remove()
    held = loop(pipe, computed, lambda times, step: [1.0] + [0.0] * (len(times) - 1))
    torch.testing.assert_close(found, held, rtol=1e-4, atol=1e-4)


def test_outputs_are_forecast_with_the_fitted_weights() -> None:
    pipe = accelerated("fitted")
    found, computed = act(pipe), pipe.acceleration.plan.computed()
    pipe.acceleration.remove()
    trace = record(pipe, OBSERVATIONS, level="output")
    method = Fitted(computed=5, anchors=2, feedback=0.0, level="output", calibration=Calibration({STEPS: trace}))
    (site,) = sites(pipe.denoiser, "output")
    rule = method.forecaster(site, STEPS)
    assert method.plan([site], STEPS).computed() == computed

    def weights(times: list[float], step: float) -> Any:
        return rule.weights(times, step)[0]

    torch.testing.assert_close(found, loop(pipe, computed, weights), rtol=1e-3, atol=1e-3)


@methods
def test_removal_leaves_no_trace(method: str) -> None:
    pipe = robot()
    full, before = act(pipe), traces(pipe, pipe.denoiser)
    accelerate_pipeline(pipe, method, level="output", **METHODS[method])
    assert not torch.equal(act(pipe), full)
    pipe.acceleration.remove()
    assert same(before, traces(pipe, pipe.denoiser))
    assert torch.equal(act(pipe), full)
