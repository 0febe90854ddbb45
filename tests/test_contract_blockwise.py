"""What block-wise methods promise on every kind of pipeline: pictures, policies, policies of other projects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from diffaccel import accelerate_pipeline
from diffaccel.block_schedules import scheduler_name, width
from diffaccel.branches import layers
from diffaccel.denoisers import clocks, denoisers
from diffaccel.schedule_file import BlockSchedules
from diffaccel.similarity import similarity
from diffaccel.sites import BRANCH, sites
from diffaccel.tape import taped
from tests.block_reference import drawn
from tests.policies import (
    ACTION,
    OBSERVATION,
    OBSERVED,
    ConditionalUnet1D,
    MultiTaskDiTPolicy,
    observe,
    query,
    randomize,
    unet_policy,
)
from tests.test_branch_promises import attributes
from tests.test_contract import same, traces
from tests.test_foreign_policies import FOREIGN
from tests.test_policy_pipeline import observations, policy, seeded
from tests.tiny import FAMILIES

CALIBRATED = ("unified", "acs", "bac", "effect")


@dataclass(frozen=True)
class Subject:
    """Something to accelerate; `run(pipe, batch, pick)` runs it from a seed, with one sample of the batch if picked."""

    make: Callable[[], Any]
    run: Callable[..., Tensor]
    steps: int


def run_policy(pipe: Any, batch: int = 2, pick: int | None = None) -> Tensor:
    chosen = list(range(batch)) if pick is None else [pick]
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 8, 3, generator=generator)[chosen]
    return pipe(observations(4)[chosen], latents=latents, generator=seeded(*chosen)).actions


SUBJECTS = {
    **{name: Subject(family.make, family.run, 8) for name, family in FAMILIES.items()},
    "policy": Subject(lambda: policy(num_inference_steps=10), run_policy, 10),
    **{name: Subject(make, query, calls) for name, (make, *_, calls) in FOREIGN.items() if "unet" not in name},
}
subjects = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)


def network_of(pipe: Any) -> nn.Module:
    """The one denoiser."""
    (network,) = denoisers(pipe).values()
    return network


def schedules(subject: Subject, full: bool = False) -> BlockSchedules:
    """Made by hand: random rows, or all steps."""
    pipe = subject.make()
    network = network_of(pipe)
    names = [site.name for site in sites(network, BRANCH)]
    rows = {name: [step for step in row if step < subject.steps] for name, row in drawn(names, 0).items()}
    return BlockSchedules(
        rows={name: range(subject.steps) if full else row for name, row in rows.items()},
        steps=subject.steps,
        rule="acs",
        settings={},
        losses=None,
        bubbled=(),
        network=type(network).__name__,
        layers=len(layers(network)),
        width=width(network),
        scheduler=scheduler_name(pipe),
    )


def run(subject: Subject, pipe: Any, **options: Any) -> Tensor:
    """A run after one in which policies of other projects are only counted."""
    subject.run(pipe, **options)
    return subject.run(pipe, **options)


@subjects
@pytest.mark.parametrize("method", ["uniform", "bac"])
def test_full_plan_is_bit_identical(subject: Subject, method: str) -> None:
    pipe = subject.make()
    expected = subject.run(pipe)
    options = {"updates": subject.steps} if method == "uniform" else {"calibration": schedules(subject, full=True)}
    accelerate_pipeline(pipe, method, **options)
    found = run(subject, pipe)
    if subject is SUBJECTS["bert"]:  # whose fused path rounds otherwise
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(found, expected)


@subjects
def test_skipped_steps_are_skipped_and_removal_is_exact(subject: Subject) -> None:
    pipe, plan = subject.make(), schedules(subject)
    full = subject.run(pipe)
    before = traces(pipe, network_of(pipe)) if hasattr(pipe, "scheduler") else None
    accelerate_pipeline(pipe, "bac", calibration=plan)
    fast = subject.run(pipe)
    # What stands in for idle modules is NaN: finite results show that none of it was used.
    assert fast.isfinite().all()
    assert not torch.allclose(fast, full, rtol=1e-3, atol=1e-3)
    assert torch.equal(subject.run(pipe), fast)
    report = pipe.acceleration.report()
    for site in report.sites:
        (computed,) = set(site.computed.values())
        (skipped,) = set(site.skipped.values()) or {0}
        assert (computed, computed + skipped) == (len(plan.rows[site.name]), subject.steps)
    pipe.acceleration.remove()
    assert torch.equal(subject.run(pipe), full)
    assert before is None or same(before, traces(pipe, network_of(pipe)))


@subjects
@pytest.mark.parametrize("order", [0, 1])
def test_a_sample_does_not_depend_on_its_batch(subject: Subject, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = subject.make()
    accelerate_pipeline(pipe, "acs", calibration=schedules(subject), order=order)
    subject.run(pipe)
    run = subject.run if subject.run is not query else partial(ask, monkeypatch)
    batch = run(pipe, batch=3)
    assert not torch.allclose(batch[1], batch[0], rtol=0.1)
    torch.testing.assert_close(run(pipe, batch=3, pick=1), batch[1:2], rtol=2e-3, atol=2e-3)


def ask(monkeypatch: pytest.MonkeyPatch, asked: nn.Module, batch: int, pick: int | None = None) -> Tensor:
    """A query of a policy of another project, whose noise is the same for all samples."""
    given = observe(asked, batch)
    if pick is not None:
        given = tree_map(lambda tensor: tensor[pick : pick + 1], given)
    real = torch.randn

    def repeated(*shape: Any, **options: Any) -> Tensor:
        rows, *sizes = shape[0] if isinstance(shape[0], tuple | torch.Size) else shape
        return real(1, *sizes, **options).repeat_interleave(rows, 0)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", repeated)
        torch.manual_seed(1)
        if isinstance(asked, MultiTaskDiTPolicy):
            asked.reset()
            return asked.select_action(*given)
        found = asked.predict_action(*given)
    return found["action"] if isinstance(found, dict) else found


@pytest.mark.parametrize("method", CALIBRATED)
def test_policies_are_calibrated_by_observations(method: str) -> None:
    subject = SUBJECTS["policy"]
    pipe = subject.make()
    full = subject.run(pipe)
    accelerate_pipeline(pipe, method, calibration=observations(3), updates=4)
    made = pipe.acceleration.method.schedules
    assert (made.rule, made.steps, made.network) == (method, 10, "TransformerForDiffusion")
    if method == "bac":
        assert made.mean_updates > 4
    else:
        assert {len(row) for row in made.rows.values()} == {4}
    assert (len(set(made.rows.values())) == 1) == (method in ("unified", "effect"))
    assert not torch.allclose(subject.run(pipe), full, rtol=1e-3)
    pipe.acceleration.remove()
    assert torch.equal(subject.run(pipe), full)


@pytest.mark.parametrize("name", [name for name in FOREIGN if "unet" not in name])
def test_policies_of_other_projects_are_calibrated_by_their_own_observations(name: str) -> None:
    pipe = SUBJECTS[name].make()
    full, before = query(pipe), attributes(pipe)
    given = [observe(pipe, seed=seed)[0] if name != "rdt" else observe(pipe, seed=seed) for seed in range(2)]
    accelerate_pipeline(pipe, "bac", calibration=given, updates=3, bubbling=1)
    made = pipe.acceleration.method.schedules
    assert (made.steps, made.scheduler) == (SUBJECTS[name].steps, scheduler_name(pipe))
    fast = query(pipe)  # the first query is accelerated: the calibration counted its calls
    assert pipe.acceleration.report().steps == made.steps
    assert not torch.allclose(fast, full, rtol=1e-3)
    pipe.acceleration.remove()
    assert torch.equal(query(pipe), full)
    if name not in ("dit", "dit-ddim", "dit-euler", "dit-rk4"):  # whose queue is anew in each query
        assert attributes(pipe) == before


def test_convolutional_policies_are_told_what_works() -> None:
    for method, options in (("uniform", {}), ("bac", {"calibration": observe(unet_policy())})):
        pipe = unet_policy()
        with pytest.raises(ValueError, match=r"ConditionalUnet1D has no attention.*level='deep'"):
            accelerate_pipeline(pipe, method, **options)
        assert not hasattr(pipe, "acceleration")
    pipe = policy(randomize(ConditionalUnet1D(ACTION, OBSERVED * OBSERVATION)))
    with pytest.raises(ValueError, match=r"ConditionalUnet1D has no attention.*level='deep'"):
        accelerate_pipeline(pipe, "bac", calibration=observations())


def test_what_is_learnt_does_not_depend_on_the_order_of_a_batch() -> None:
    pipe = policy(num_inference_steps=6)
    network, tables = pipe.denoiser, []
    for order in ([0, 1, 2], [2, 0, 1]):
        with taped(network, clocks(pipe)["denoiser"]) as tape:
            pipe(observations(3)[order], latents=torch.ones(3, 8, 3), generator=seeded(*order))
            features = torch.stack(tape.added["call 0", 1], 1)
        tables.append(similarity(features.flatten(2), "cosine", samples=True))
    assert abs(tables[0] - tables[1]).max() < 1e-5
