"""What every method promises on every model family, at every level."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from diffaccel import accelerate_pipeline
from diffaccel.calibration import Calibration, worked_out
from diffaccel.recording import recording
from diffaccel.sites import sites
from tests.tiny import FAMILIES, FAMILY_LEVELS, Family

# More than one group of dimensions each, and for "fitted" all there is to fit.
SKIPPING: dict[str, dict[str, Any]] = {
    "taylorseer": {"interval": 3, "order": 1},
    "hyca": {"interval": 3, "clusters": 4},
    "fitted": {"interval": 3, "clusters": 2, "anchors": 3, "feedback": 0.5},
}
CALIBRATED = ("hyca", "fitted")

# Methods whose plan is known before the run; what decides in mid-run keeps the same promises in tests of its own.
pytestmark = pytest.mark.parametrize("method", SKIPPING)
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
levels = pytest.mark.parametrize(("family", "level"), FAMILY_LEVELS.values(), ids=FAMILY_LEVELS)
guided = pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guided"])


@cache
def calibration(family: Family, level: str = "model", seed: int = 0, lengths: tuple[int, ...] = (8,)) -> Calibration:
    """What calibrated methods learn from uncached runs of `family.make(seed)`, by number of steps."""
    pipe, found = family.make(seed), {}
    for steps in lengths:
        with recording(pipe, level) as recorder:
            family.run(pipe, steps=steps, batch=2, guidance=True, seed=77)
        found[steps] = worked_out(recorder.trace(), pipe.scheduler)
    return Calibration(found)


def options(
    method: str, family: Family, level: str = "model", seed: int = 0, lengths: tuple[int, ...] = (8,), **more: Any
) -> dict[str, Any]:
    """Options with which a method skips steps of `family.make(seed)` in runs of these lengths."""
    learnt = {"calibration": calibration(family, level, seed, lengths)} if method in CALIBRATED else {}
    return {"level": level, **SKIPPING[method], **learnt, **more}


def traces(pipe: Any, network: nn.Module) -> list[dict[str, Any]]:
    """The attributes of everything an acceleration touches, to be compared by identity."""
    owners = [pipe, pipe.scheduler, *network.modules()]
    return [
        {**vars(owner), **{f"{name}/": list(value) for name, value in vars(owner).items() if "hooks" in name}}
        for owner in owners
    ]


def same(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    """Whether no attribute came, went or changed, hooks included; what pipeline and scheduler note of a run aside."""
    run_state = {
        "_joint_attention_kwargs",
        "timesteps",
        "sigmas",
        "num_inference_steps",
        "_step_index",
        "_begin_index",
        "_mu",
        "_num_timesteps",
    }
    return all(
        old.keys() == new.keys()
        and all(
            old[name] is new[name] or (name.endswith("/") and old[name] == new[name]) for name in old.keys() - run_state
        )
        for old, new in zip(before, after, strict=True)
    )


@families
def test_full_plan_is_bit_identical(family: Family, method: str) -> None:
    for guidance in (False, True):
        pipe = family.make()
        expected = family.run(pipe, guidance=guidance)
        accelerate_pipeline(pipe, method, **options(method, family, interval=1))
        assert torch.equal(family.run(pipe, guidance=guidance), expected)


@levels
@guided
def test_skipped_steps_are_skipped_and_nothing_leaks(family: Family, method: str, level: str, guidance: bool) -> None:
    pipe = family.make()
    expected = family.run(pipe, guidance=guidance)
    calls: Counter[str] = Counter()
    for site in sites(family.denoiser(pipe), level):
        for i, module in enumerate((site.owner, *site.idle)):
            count_forwards(module, f"{site.name} {i}", calls)
    accelerate_pipeline(pipe, method, **options(method, family, level))
    result = family.run(pipe, guidance=guidance)
    computed = len(pipe.acceleration.plan.computed())
    branches = len(pipe.acceleration.report().sites[0].computed)
    assert 0 < computed < 8
    assert set(calls.values()) == {computed * branches}
    # What stands in for idle modules is NaN: finite results show that none of it was used.
    assert result.isfinite().all()
    assert not torch.equal(result, expected)


def count_forwards(module: nn.Module, name: str, calls: Counter[str]) -> None:
    """Count how often the real code of a module is entered."""
    real = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return real(*args, **kwargs)

    module.forward = forward


@levels
def test_report_counts_what_happened(family: Family, method: str, level: str) -> None:
    pipe = accelerate_pipeline(family.make(), method, **options(method, family, level))
    family.run(pipe, steps=8)
    report = pipe.acceleration.report()
    computed = len(pipe.acceleration.plan.computed())
    assert len(report.sites) == len(sites(family.denoiser(pipe), level))
    assert all(sum(site.computed.values()) == computed for site in report.sites)
    assert all(sum(site.skipped.values()) == 8 - computed for site in report.sites)
    assert report.bound == pytest.approx(8 / computed)
    assert {kind: len(seconds) for kind, seconds in report.seconds.items()} == {
        "computed": computed,
        "skipped": 8 - computed,
    }
    assert report.memory > 0


@levels
def test_removal_is_bit_identical_and_leaves_no_trace(family: Family, method: str, level: str) -> None:
    pipe = family.make()
    expected = family.run(pipe)
    before = traces(pipe, family.denoiser(pipe))
    accelerate_pipeline(pipe, method, **options(method, family, level))
    assert not same(before, traces(pipe, family.denoiser(pipe)))
    family.run(pipe)
    pipe.acceleration.remove()
    assert same(before, traces(pipe, family.denoiser(pipe)))
    assert torch.equal(family.run(pipe), expected)


@levels
def test_a_run_does_not_depend_on_the_one_before(family: Family, method: str, level: str) -> None:
    pipe = accelerate_pipeline(family.make(), method, **options(method, family, level, lengths=(8, 9, 10)))
    first = family.run(pipe, steps=8, guidance=True)
    family.run(pipe, steps=10, seed=3)
    family.run(pipe, steps=9, batch=2, seed=4)
    assert torch.equal(family.run(pipe, steps=8, guidance=True), first)


@levels
@guided
def test_batch_mates_do_not_influence_each_other(family: Family, method: str, level: str, guidance: bool) -> None:
    pipe = accelerate_pipeline(family.make(), method, **options(method, family, level))
    both = family.run(pipe, batch=2, guidance=guidance)
    singles = torch.cat([family.run(pipe, batch=2, guidance=guidance, pick=i) for i in range(2)])
    pipe.acceleration.remove()
    plain = family.run(pipe, batch=2, guidance=guidance)
    plain_singles = torch.cat([family.run(pipe, batch=2, guidance=guidance, pick=i) for i in range(2)])
    # A batch changes float sums even in the unaccelerated pipeline; forecasting may amplify that, not add to it.
    floor = (plain - plain_singles).abs().max() + 1e-6 * plain.abs().max()
    assert (both - singles).abs().max() <= 30 * floor


@levels
@pytest.mark.parametrize("failing_call", [1, 5])
def test_a_failed_run_leaves_the_next_one_right(family: Family, method: str, level: str, failing_call: int) -> None:
    pipe = accelerate_pipeline(family.make(), method, **options(method, family, level))
    expected = family.run(pipe)
    calls = iter(range(100))

    def fail(*_: Any) -> None:
        if next(calls) == failing_call:
            raise KeyboardInterrupt

    handle = family.denoiser(pipe).register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        family.run(pipe, seed=5)
    handle.remove()
    assert torch.equal(family.run(pipe), expected)


@families
def test_two_pipelines_of_a_class(family: Family, method: str) -> None:
    one, two, plain = family.make(1), family.make(2), family.make(1)
    expected = family.run(plain)
    accelerate_pipeline(one, method, **options(method, family, seed=1))
    alone = family.run(one)
    accelerate_pipeline(two, method, **options(method, family, seed=2))
    family.run(two)
    assert torch.equal(family.run(one), alone)
    one.acceleration.remove()
    assert torch.equal(family.run(one), expected)
    assert pipe_is_accelerated(two, family)
    two.acceleration.remove()
    assert torch.equal(family.run(plain), expected)


def pipe_is_accelerated(pipe: Any, family: Family) -> bool:
    """Whether a run of `pipe` skips."""
    family.run(pipe)
    return any(sum(site.skipped.values()) for site in pipe.acceleration.report().sites)


@families
def test_schedulers_are_swapped_at_will(family: Family, method: str) -> None:
    pipe = accelerate_pipeline(family.make(), method, **options(method, family))
    first, second = pipe.scheduler, copy.deepcopy(pipe.scheduler)
    expected = family.run(pipe)
    pipe.scheduler = second
    assert torch.equal(family.run(pipe), expected)
    assert "step" not in vars(first)
    pipe.acceleration.remove()
    assert "step" not in vars(second)


@families
def test_a_second_acceleration_is_refused_and_the_first_lives_on(family: Family, method: str) -> None:
    pipe = accelerate_pipeline(family.make(), method, **options(method, family))
    expected = family.run(pipe)
    with pytest.raises(ValueError, match=r"already accelerated by .*remove\(\)"):
        accelerate_pipeline(pipe, method)
    assert torch.equal(family.run(pipe), expected)
    assert pipe_is_accelerated(pipe, family)
