"""Block-wise schedules from end to end: made, saved, loaded, checked; and what is refused before any long work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffaccel import accelerate_pipeline
from diffaccel.methods.bac import BETTER, adaptive_schedule, bubbling_union
from diffaccel.pipelines.policies.transformer import TransformerForDiffusion
from diffaccel.schedule_file import BlockSchedules
from diffaccel.tape import learn
from tests import tiny
from tests.block_reference import Planned
from tests.policies import ACTION, HORIZON, OBSERVATION, OBSERVED, decoder_policy, query
from tests.test_contract_blockwise import run_policy
from tests.test_policy_pipeline import COSINE, observations, policy

STEPS = 10


def made(**options: Any) -> Any:
    """A policy with ten steps."""
    return policy(**{"num_inference_steps": STEPS, **options})


def state(pipe: Any) -> list[dict[str, Any]]:
    """All attributes that an acceleration touches, by identity."""
    owners = (pipe, pipe.scheduler, *pipe.denoiser.modules())
    return [{name: id(value) for name, value in vars(owner).items()} for owner in owners]


def accelerated(calibration: Any, **options: Any) -> Any:
    return accelerate_pipeline(made(), "bac", calibration=calibration, **options)


def test_schedules_come_back_from_their_file(tmp_path: Path) -> None:
    pipe = accelerated(observations(), updates=4, bubbling=2)
    pipe.acceleration.method.schedules.save(path := tmp_path / "schedules.json")
    first = run_policy(pipe)
    other = accelerated(path)
    assert torch.equal(run_policy(other), first)
    assert other.acceleration.method.schedules == pipe.acceleration.method.schedules
    # The rule that made them does not matter to who uses them; a path may be a word, and schedules an object.
    for calibration in (str(path), BlockSchedules.load(path)):
        assert torch.equal(run_policy(accelerate_pipeline(made(), "acs", calibration=calibration)), first)


def test_schedules_are_those_of_the_rule() -> None:
    pipe = made()
    learnt = learn(pipe, observations(3), "cosine", seed=4)
    names = list(learnt.names)
    rows = {name: adaptive_schedule(learnt.similarities[name], 4, BETTER["cosine"]) for name in names}
    assert len({tuple(row) for row in rows.values()}) > 1
    for method, expected in (("acs", rows), ("bac", bubbling_union(rows, learnt.losses, names, 2))):
        options = {"bubbling": 2} if method == "bac" else {}
        accelerate_pipeline(pipe, method, calibration=observations(3), updates=4, seed=4, **options)
        found = pipe.acceleration.method.schedules
        assert found.rows == {name: tuple(row) for name, row in expected.items()}
        pipe.acceleration.remove()
    assert len(found.bubbled) == 2
    assert found.losses[found.bubbled[0]] == max(found.losses.values())


def test_what_is_learnt_is_the_mean_over_observations() -> None:
    given = observations(3)
    together = learn(made(), given, "cosine", seed=0)
    alone = [learn(made(), given[i : i + 1], "cosine", seed=i) for i in range(3)]
    for name in together.names:
        mean = sum(one.similarities[name] for one in alone) / 3
        assert abs(together.similarities[name] - mean).max() < 1e-6
        assert together.losses[name] == pytest.approx(sum(one.losses[name] for one in alone) / 3)
    assert abs(alone[0].similarities[together.names[0]] - alone[1].similarities[together.names[0]]).max() > 1e-4


def test_an_observation_by_itself_and_lists_of_them_are_taken() -> None:
    given = observations(2)
    expected = accelerated(given, updates=4).acceleration.method.schedules
    for form in ([given[0], given[1]], [given[:1], given[1:]], given.numpy()):
        assert accelerated(form, updates=4).acceleration.method.schedules == expected
    one = accelerated(given[0], updates=4).acceleration.method.schedules
    assert one == accelerated(given[:1], updates=4).acceleration.method.schedules


def sized(**sizes: int) -> TransformerForDiffusion:
    return TransformerForDiffusion(ACTION, ACTION, HORIZON, OBSERVED, OBSERVATION, n_head=4, **sizes)


OTHERS = {
    "network": (lambda: tiny.dit(), "network TransformerForDiffusion, here DiTTransformer2DModel"),
    "width": (lambda: made(network=sized(n_layer=2, n_emb=64)), "width 32, here 64"),
    "layers": (lambda: made(network=sized(n_layer=3, n_emb=32)), r"no schedule for decoder\.layers\.2\.sa"),
    "steps": (lambda: made(num_inference_steps=7), "steps 10, here 7.*run 10 steps"),
    "scheduler": (
        lambda: made(scheduler=DDIMScheduler(**COSINE, clip_sample=False)),
        "scheduler DDPMScheduler, here DDIMScheduler",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_schedules_of_something_else_are_refused(other: str, tmp_path: Path) -> None:
    accelerated(observations(), updates=4).acceleration.method.schedules.save(path := tmp_path / "schedules.json")
    make, told = OTHERS[other]
    pipe = make()
    before = vars(pipe).copy() if other == "network" else state(pipe)
    with pytest.raises(ValueError, match=f"made for something else.*{told}"):
        accelerate_pipeline(pipe, "bac", calibration=path)
    assert (vars(pipe) if other == "network" else state(pipe)) == before


def test_a_run_of_another_length_is_refused() -> None:
    pipe = accelerated(observations(), updates=4)
    expected = run_policy(pipe)
    with pytest.raises(ValueError, match=r"steps 10, here 6.*run 10 steps, or make the schedules anew"):
        pipe(observations(), num_inference_steps=6)
    assert torch.equal(run_policy(pipe), expected)


def not_a_number() -> Tensor:
    given = observations()
    given[1, 0, 0] = torch.nan
    return given


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "learns its schedules from the pipeline: give calibration=observations"),
    "prompts": ({"calibration": ["a cat"]}, "learns from observations, .*not from prompts"),
    "a prompt": ({"calibration": "a cat"}, "learns from observations, .*not from prompts"),
    "empty": ({"calibration": []}, "calibration is empty: give at least one observation"),
    "empty tensor": ({"calibration": torch.empty(0, OBSERVED, OBSERVATION)}, "calibration is empty"),
    "shape": ({"calibration": torch.zeros(2, OBSERVED + 1, OBSERVATION)}, r"observations must have shape"),
    "shapes": ({"calibration": [torch.zeros(2, 6), torch.zeros(3, 6)]}, "must be of one shape"),
    "NaN": ({"calibration": not_a_number()}, "values that are not finite"),
    "updates 11": ({"calibration": observations(), "updates": 11}, "updates=11 is more than the 10 network calls"),
    "updates 0": ({"calibration": observations(), "updates": 0}, "updates must be"),
    "bubbling": ({"calibration": observations(), "bubbling": -1}, "bubbling must be"),
    "metric": ({"calibration": observations(), "metric": "cosin"}, "metric.*cosine"),
    "objective": ({"calibration": observations(), "objective": "best"}, "objective.*anchor"),
    "order": ({"calibration": observations(), "order": 2}, "order"),
}


@pytest.mark.parametrize(("options", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_any_run(options: dict[str, Any], told: str) -> None:
    pipe = made()
    before, calls = state(pipe), []
    handle = pipe.denoiser.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=told):
        accelerate_pipeline(pipe, "bac", **options)
    handle.remove()
    assert (state(pipe), calls) == (before, [])


def test_effects_refuse_as_early() -> None:
    for options, told in (
        ({}, "give calibration=observations"),
        ({"calibration": not_a_number()}, "values that are not finite"),
        ({"calibration": ["a cat"]}, "not from prompts"),
        ({"calibration": []}, "calibration is empty"),
        ({"calibration": observations(), "updates": 11}, "updates=11 is more than the 10 network calls"),
        ({"calibration": observations(), "probes": 0}, "probes must be"),
    ):
        pipe, calls = made(), []
        handle = pipe.denoiser.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with pytest.raises(ValueError, match=told):
            accelerate_pipeline(pipe, "effect", **options)
        handle.remove()
        assert not calls
    with pytest.raises(TypeError, match="into a PolicyPipeline, or use method='bac'"):
        accelerate_pipeline(decoder_policy(), "effect", calibration=observations())


def test_files_that_are_no_schedules_are_refused(tmp_path: Path) -> None:
    (bad := tmp_path / "bad.json").write_text("{")
    (other := tmp_path / "other.json").write_text(json.dumps({"what": "recipe"}))
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.json with schedules"):
        accelerated(tmp_path / "missing.json")
    for path, told in ((bad, "cannot be used"), (other, "does not hold schedules of blocks")):
        with pytest.raises(ValueError, match=told):
            accelerated(path)


def test_updates_beyond_the_calls_of_a_foreign_policy_are_refused_once_they_are_known() -> None:
    pipe = decoder_policy(calls=6)
    full = query(pipe)
    with pytest.raises(ValueError, match="updates=7 is more than the 6 network calls"):
        accelerate_pipeline(pipe, "bac", calibration={"obs": torch.zeros(1, OBSERVED, OBSERVATION)}, updates=7)
    assert torch.equal(query(pipe), full)
    assert not hasattr(pipe, "acceleration")


def test_two_denoisers_are_refused() -> None:
    pipe = tiny.flux()
    pipe.transformer_2 = tiny.flux_transformer(1)
    with pytest.raises(ValueError, match="made for one network, this pipeline has transformer, transformer_2"):
        accelerate_pipeline(pipe, "bac", calibration=["a cat"])


def test_the_last_step_can_be_computed_by_all() -> None:
    pipe = accelerated(observations(), updates=3, bubbling=0, always_update_last=True)
    assert all(row[-1] for row in pipe.acceleration.plan.rows)
    run_policy(pipe)
    assert all(site.computed == {"call 0": sum(row)} for site, row in sites_and_rows(pipe))
    assert not all(row[-1] for row in accelerated(observations(), updates=3, bubbling=0).acceleration.plan.rows)


def sites_and_rows(pipe: Any) -> zip[Any]:
    return zip(pipe.acceleration.report().sites, pipe.acceleration.plan.rows, strict=True)


def test_order_1_continues_lines() -> None:
    reused, continued = (accelerated(observations(), updates=4, order=order) for order in (0, 1))
    rows = reused.acceleration.method.schedules.rows
    assert continued.acceleration.method.schedules.rows == rows
    for pipe, order in ((reused, 0), (continued, 1)):
        expected = run_policy(accelerate_pipeline(made(), Planned(rows, order)))
        assert torch.equal(run_policy(pipe), expected)
    assert not torch.allclose(run_policy(reused), run_policy(continued), rtol=1e-3)
