"""Is it first-block caching? Against diffusers' own, and does every sample decide for itself?"""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from torch import Tensor, nn

from diffaccel import FirstBlock, Plan, accelerate, accelerate_pipeline
from diffaccel.commands.method import outcome
from diffaccel.forecast import Hold, Taylor
from diffaccel.methods.first_block import NotPlannedError
from diffaccel.residual import relative_change, samples, samples_axis
from diffaccel.rows import RowAnchors
from tests import tiny
from tests.test_contract import same, traces
from tests.zoo import specimen

FAMILIES = pytest.mark.parametrize("name", ["flux", "dit"])
GUIDED = pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guided"])

# Random weights change far more from step to step than trained ones: thresholds that skip about half.
THRESHOLD = {"flux": 1.1, "dit": 1.2}


def watched(pipe: Any, family: tiny.Family) -> list[bool]:
    """For every call of the network from now on, whether its second block ran."""
    network, calls = family.denoiser(pipe), []
    network.register_forward_pre_hook(lambda *_: calls.append(False))
    network.transformer_blocks[1].norm1.register_forward_hook(lambda *_: calls.__setitem__(-1, True))
    return calls


@GUIDED
@pytest.mark.parametrize("threshold", [0.6, 0.9, 1.3])
def test_no_difference_to_diffusers(guidance: bool, threshold: float) -> None:
    family, steps = tiny.FAMILIES["flux"], 20
    pipe = family.make()
    plain = family.run(pipe, steps=steps, guidance=guidance)
    calls = watched(pipe, family)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    expected = family.run(pipe, steps=steps, guidance=guidance)
    pipe.transformer.disable_cache()
    theirs = calls.copy()
    calls.clear()
    accelerate_pipeline(pipe, FirstBlockCacheConfig(threshold=threshold))
    result = family.run(pipe, steps=steps, guidance=guidance)
    assert calls == theirs
    assert 0 < sum(theirs) < len(theirs)
    assert (expected - plain).norm() > 1e-3 * plain.norm()
    # Equal but for the order of float32 operations.
    assert (result - expected).norm() <= 2e-5 * plain.norm()


@FAMILIES
@GUIDED
@pytest.mark.parametrize("order", [0, 1])
def test_every_sample_decides_for_itself(name: str, guidance: bool, order: int) -> None:
    family, batch, steps = tiny.FAMILIES[name], 3, 12
    pipe = family.make()
    rule = FirstBlock(THRESHOLD[name], order=order, max_skipped=3)
    arguments: dict[str, Any] = {"steps": steps, "batch": batch, "guidance": guidance}
    plain = family.run(pipe, **arguments)
    plain_singles = torch.cat([family.run(pipe, **arguments, pick=i) for i in range(batch)])
    accelerate_pipeline(pipe, rule)
    together = family.run(pipe, **arguments)
    singles, plans = [], []
    for i in range(batch):
        singles.append(family.run(pipe, **arguments, pick=i))
        plans.append(tuple(pipe.acceleration.plan.computed()))
    # The samples disagree about what to compute, or there would be nothing to see.
    assert len(set(plans)) > 1
    assert not torch.equal(together, plain)
    # A batch changes float sums even in the unaccelerated pipeline; caching may amplify that, not add to it.
    floor = (plain - plain_singles).abs().max() + 1e-6 * plain.abs().max()
    assert (together - torch.cat(singles)).abs().max() <= 30 * floor


def test_rows_forecast_as_each_would_alone() -> None:
    """Three rows with histories of their own, of the line a + b t each: order 1 continues it, order 0 stays."""
    offset, slope = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    renewed = {0: [True] * 3, 1: [True, False, False], 3: [True, True, False], 4: [False, True, False]}
    for order in (0, 1, 2):
        anchors = RowAnchors([offset], 0, order, axis=0)
        for step, rows in list(renewed.items())[1:]:
            fresh = offset + slope * step
            # What a row does not renew must not be read.
            anchors.renew(rows, [torch.where(torch.tensor(rows).view(3, 1, 1), fresh, torch.nan)], step)
        assert anchors.times == [times[: order + 1] for times in [(3, 1, 0), (4, 3, 0), (0,)]]
        found = anchors.forecast(Taylor(order) if order else Hold(), 6)[0]
        expected = offset + slope * torch.tensor([6.0, 6.0, 0.0] if order else [3.0, 4.0, 0.0]).view(3, 1, 1)
        assert torch.allclose(found, expected, atol=1e-5)


def test_rows_are_where_the_samples_are() -> None:
    assert samples_axis((2, 70, 32), 2) == 0
    assert samples_axis((70, 2, 32), 2) == 1  # tokens first
    assert samples_axis((70, 32), 2) is None  # all samples in one sequence
    assert samples({0: torch.zeros(2, 4), "timestep": torch.zeros(3)}) == 2
    assert samples({"x": [torch.zeros(4, 8)] * 3, "t": torch.zeros(3)}) == 3
    assert samples({"timestep": torch.zeros(1), "hidden_states": torch.zeros(4, 8)}) == 4


def test_tokens_first_is_the_same_as_samples_first() -> None:
    parts = [torch.randn(3, 4, 5) for _ in range(3)]
    found = []
    for axis in (0, 1):
        anchors = RowAnchors([parts[0].movedim(0, axis)], 0, 1, axis)
        anchors.renew([True, False, True], [parts[1].movedim(0, axis)], 1)
        anchors.renew([True, True, False], [parts[2].movedim(0, axis)], 2)
        found.append(anchors.forecast(Taylor(1), 4)[0].movedim(axis, 0))
    assert torch.equal(*found)
    change = [relative_change(parts[1].movedim(0, axis), parts[0].movedim(0, axis), axis) for axis in (0, 1)]
    assert torch.allclose(*change)
    together = relative_change(parts[1], parts[0], None)
    assert together.item() == pytest.approx(((parts[1] - parts[0]).abs().mean() / parts[0].abs().mean()).item())


def test_change_is_relative_and_by_row() -> None:
    before = torch.tensor([[[1.0, -1.0]], [[2.0, 2.0]], [[0.0, 0.0]]])
    now = torch.tensor([[[1.5, -1.5]], [[2.0, 2.0]], [[1.0, 0.0]]])
    assert relative_change(now, before, 0).tolist() == [0.5, 0.0, math.inf]


@FAMILIES
@GUIDED
def test_a_threshold_of_zero_changes_nothing(name: str, guidance: bool) -> None:
    family = tiny.FAMILIES[name]
    pipe = family.make()
    expected = family.run(pipe, guidance=guidance)
    accelerate_pipeline(pipe, "first_block", threshold=0)
    assert torch.equal(family.run(pipe, guidance=guidance), expected)


@FAMILIES
@pytest.mark.parametrize("order", [0, 1])
def test_a_plan_known_beforehand_is_the_one_that_runs(name: str, order: int) -> None:
    family = tiny.FAMILIES[name]
    pipe = accelerate_pipeline(family.make(), "first_block", threshold=math.inf, warmup=3, max_skipped=2, order=order)
    calls = watched(pipe, family)
    assert pipe.acceleration.method.plan([], 12) == Plan.every(3, 12, 3)
    # What stands in for skipped blocks is NaN: finite results show that none of it was used.
    assert family.run(pipe, steps=12).isfinite().all()
    assert [s for s, ran in enumerate(calls) if ran] == Plan.every(3, 12, 3).computed()
    assert pipe.acceleration.plan == Plan.every(3, 12, 3)


def test_options_that_force_steps() -> None:
    rule = FirstBlock(math.inf, warmup=8, warmup_interval=2, max_skipped=3)
    assert rule.plan([], 16).computed() == [0, 2, 4, 6, 10, 14]
    rule = FirstBlock(math.inf, schedule=Plan.at([0, 2, 5], 8))
    assert rule.plan([], 8).computed() == [0, 2, 5]
    assert FirstBlock(math.inf).plan([], 1).computed() == [0]


def test_there_is_no_plan_before_the_run_and_a_true_one_after_it() -> None:
    family = tiny.FAMILIES["flux"]
    pipe = accelerate_pipeline(family.make(), "first_block", threshold=1.1)
    calls = watched(pipe, family)
    with pytest.raises(NotPlannedError, match=r"decides while it runs .* no plan before the run"):
        print(pipe.acceleration.plan)  # noqa: T201
    assert "no run yet" in str(pipe.acceleration)
    family.run(pipe, steps=12)
    assert pipe.acceleration.plan == Plan.at([s for s, ran in enumerate(calls) if ran], 12)
    first, last = pipe.acceleration.report().sites
    assert (first.name, dict(first.computed), dict(first.skipped)) == ("transformer_blocks.0", {"cond": 12}, {})
    assert (dict(last.computed), dict(last.skipped)) == ({"cond": sum(calls)}, {"cond": 12 - sum(calls)})
    assert pipe.acceleration.report().bound == pytest.approx(12 / sum(calls))


def test_branches_are_counted_apart() -> None:
    family = tiny.FAMILIES["flux"]
    pipe = accelerate_pipeline(family.make(), "first_block", threshold=0.6)
    calls = watched(pipe, family)
    family.run(pipe, steps=20, guidance=True)
    last = pipe.acceleration.report().sites[-1]
    assert calls[0::2] != calls[1::2]
    assert dict(last.computed) == {"cond": sum(calls[0::2]), "uncond": sum(calls[1::2])}
    assert pipe.acceleration.report().bound == pytest.approx(40 / sum(calls))
    assert outcome(pipe)["computed"] == f"{sum(calls) / 2:.1f} of 20 steps on average"
    assert pipe.acceleration.plan.computed() == [s for s in range(20) if any(calls[2 * s : 2 * s + 2])]


@FAMILIES
def test_removal_is_bit_identical_and_leaves_no_trace(name: str) -> None:
    family = tiny.FAMILIES[name]
    pipe = family.make()
    expected = family.run(pipe)
    before = traces(pipe, family.denoiser(pipe))
    accelerate_pipeline(pipe, "first_block", threshold=THRESHOLD[name])
    assert not torch.equal(family.run(pipe), expected)
    pipe.acceleration.remove()
    assert same(before, traces(pipe, family.denoiser(pipe)))
    assert torch.equal(family.run(pipe), expected)


@FAMILIES
def test_a_run_does_not_depend_on_the_one_before(name: str) -> None:
    family = tiny.FAMILIES[name]
    pipe = accelerate_pipeline(family.make(), "first_block", threshold=THRESHOLD[name], order=1)
    expected = family.run(pipe, guidance=True)
    family.run(pipe, steps=10, seed=3)
    family.run(pipe, steps=9, batch=2, seed=4)
    assert torch.equal(family.run(pipe, guidance=True), expected)


@FAMILIES
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_failed_run_leaves_the_next_one_right(name: str, where: str) -> None:
    family = tiny.FAMILIES[name]
    pipe = accelerate_pipeline(family.make(), "first_block", threshold=THRESHOLD[name])
    expected = family.run(pipe)
    calls = iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt

    network = family.denoiser(pipe)
    first = network.transformer_blocks[0]
    handle = network.register_forward_pre_hook(fail) if where == "before" else first.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        family.run(pipe, seed=5)
    handle.remove()
    assert torch.equal(family.run(pipe), expected)


def test_guidance_switched_off_in_mid_run() -> None:
    """Half the rows are gone from some step on: nothing of the other shape is used."""
    network = tiny.FAMILIES["dit"].make().transformer
    x, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    with accelerate(network, FirstBlock(math.inf), steps=8) as acceleration:
        for step in range(8):
            rows = 2 if step < 4 else 1
            out = network(x[:rows], timestep=torch.full((rows,), 900 - 100 * step), class_labels=labels[:rows])[0]
            assert out.shape[0] == rows
            assert out.isfinite().all()
        assert acceleration.plan.computed() == [0, 4]


@pytest.mark.parametrize("order", [0, 1])
def test_memory_is_reported_and_freed(order: int) -> None:
    # 16 image and 6 text tokens of width 32 in float32: what the other blocks added; of the first, image tokens only.
    pipe = accelerate_pipeline(tiny.flux(), FirstBlock(math.inf, order=order, max_skipped=1))
    tiny.run_flux(pipe, steps=10)
    assert pipe.acceleration.report().memory == ((order + 1) * 22 + 16) * 32 * 4
    (session,) = pipe.acceleration._sessions.values()
    assert session._held() == 0


def test_nothing_skipped_is_said(caplog: pytest.LogCaptureFixture) -> None:
    pipe = accelerate_pipeline(tiny.flux(), "first_block", threshold=1e-6)
    with caplog.at_level(logging.WARNING, "diffaccel"):
        tiny.run_flux(pipe)
    assert "nothing was skipped" in caplog.text
    assert "a larger threshold skips some" in caplog.text


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_unets_are_refused_and_left_alone(name: str) -> None:
    pipe = tiny.FAMILIES[name].make()
    before = traces(pipe, pipe.unet)
    with pytest.raises(ValueError, match=r"UNet2DConditionModel is a UNet.*method='taylorseer'"):
        accelerate_pipeline(pipe, "first_block")
    assert same(before, traces(pipe, pipe.unet))


# How the last block's output begins in the first one's: tensor by tensor, or joined, text before picture.
JOINED = ("Flux2Transformer2DModel", "ChromaTransformer2DModel", "HiDreamImageTransformer2DModel")
APART = (
    "CogVideoXTransformer3DModel",
    "ErnieImageTransformer2DModel",
    "Kandinsky5Transformer3DModel",
    "LTX2VideoTransformer3DModel",
    "Lumina2Transformer2DModel",
    "SD3Transformer2DModel",
    "WanVACETransformer3DModel",
    "ZImageTransformer2DModel",
)


@pytest.mark.parametrize("name", [*JOINED, *APART])
def test_skipped_blocks_add_what_they_added_before(name: str) -> None:
    """On every skipped step: last(now) = first(now) + last(before) - first(before), in networks of many shapes."""
    found, steps = specimen(name), 5
    plain = [found.run(step, steps) for step in range(steps)]
    with accelerate(found.network, FirstBlock(math.inf, max_skipped=1), steps=steps) as acceleration:
        seen: list[list[Any]] = []
        first, last = acceleration._sessions[name].sites
        handles = [site.owner.register_forward_hook(lambda *call: seen.append(call[-1])) for site in (first, last)]
        results = [found.run(step, steps) for step in range(steps)]
        assert acceleration.plan.computed() == [0, 2, 4]
    for handle in handles:
        handle.remove()
    firsts, lasts = ([_tensors(output) for output in seen[i::2]] for i in (0, 1))
    for step, (result, full) in enumerate(zip(results, plain, strict=True)):
        equal = [torch.equal(a, b) for a, b in zip(result, full, strict=True)]
        assert all(equal) if step % 2 == 0 else not any(equal)
        begin, before = (
            [torch.cat(firsts[i], 1)] if name in JOINED else firsts[i][-len(lasts[i]) :] for i in (step, step // 2 * 2)
        )
        for now, last_before, a, b in zip(lasts[step], lasts[step // 2 * 2], begin, before, strict=True):
            assert torch.allclose(now, a + last_before - b, atol=1e-5 * float(now.abs().max()))


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in (output if isinstance(output, tuple) else [output]) if isinstance(leaf, Tensor)]


def test_compiled_blocks_are_skipped_and_a_compiled_network_is_refused() -> None:
    pipe = accelerate_pipeline(tiny.flux(), "first_block", threshold=THRESHOLD["flux"])
    expected = tiny.run_flux(pipe)
    plan = pipe.acceleration.plan
    pipe.acceleration.remove()
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager", fullgraph=True)
    accelerate_pipeline(pipe, "first_block", threshold=THRESHOLD["flux"])
    assert torch.allclose(tiny.run_flux(pipe), expected, atol=1e-4)
    assert pipe.acceleration.plan == plan
    other = tiny.flux()
    other.transformer.compile(backend="eager")
    with pytest.raises(ValueError, match=r"compiled as a whole.*compile_repeated_blocks\(\)"):
        accelerate_pipeline(other, "first_block")


class Shrinking(nn.Module):
    """A transformer that drops tokens between its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(tiny.FAMILIES["dit"].make().transformer.transformer_blocks)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        labels = torch.ones(len(x), dtype=torch.long)
        for block in self.blocks:
            x = block(x, timestep=timestep, class_labels=labels)[:, :-1]
        return x


def test_blocks_that_do_not_match_are_an_error_at_the_first_step() -> None:
    network = Shrinking()
    with (
        accelerate(network, "first_block", steps=4),
        pytest.raises(
            RuntimeError, match=r"does not fit Shrinking from blocks\.0 to blocks\.2: .*\(1, 6, 32\), the last"
        ),
    ):
        network(torch.randn(1, 6, 32), torch.tensor([1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold must be a number of at least 0"),
        ({"threshold": "0.1"}, "threshold must be a number"),
        ({"threshold": math.nan}, "threshold must be a number"),
        ({"warmup": 0}, "warmup must be a whole number of at least 1"),
        ({"order": -1}, "order must be a whole number of at least 0"),
        ({"max_skipped": -1}, "max_skipped must be a whole number of at least 0"),
        ({"schedule": [0, 3]}, r"schedule must be a diffaccel\.plan\.Plan of one row"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FirstBlock(**options)


def test_a_schedule_of_another_length_is_an_error() -> None:
    pipe = accelerate_pipeline(tiny.flux(), FirstBlock(schedule=Plan.at([0, 2], 6)))
    with pytest.raises(ValueError, match="covers 6 steps but this run has 8"):
        tiny.run_flux(pipe, steps=8)
