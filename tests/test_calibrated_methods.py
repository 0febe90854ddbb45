"""HyCa and Fitted: do they do what they learnt, only for what they learnt it of, and better than the unlearnt?"""

from __future__ import annotations

import copy
import itertools
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffaccel import Plan, accelerate, accelerate_pipeline
from diffaccel.calibration import NAME, Calibration, record, worked_out
from diffaccel.clusters import amplification, choose, solver_errors
from diffaccel.fitting import Fit, fit
from diffaccel.forecast import POOL, SOLVERS, STRICT_POOL, Forecaster, Hold, Solver, Taylor
from diffaccel.methods.fitted import Fitted
from diffaccel.methods.hyca import HyCa
from diffaccel.moments import Moments
from diffaccel.pipelines import bundled, image
from diffaccel.recording import recording
from diffaccel.session import Session
from diffaccel.sites import sites
from diffaccel.trace import Trace
from tests import tiny
from tests.test_contract import calibration, same, traces
from tests.test_trace import run_wan, wan
from tests.tiny import FAMILIES, Family

both = pytest.mark.parametrize("method", ["hyca", "fitted"])
families = pytest.mark.parametrize("name", ["flux", "dit", "sd"])
FLUX = FAMILIES["flux"]


def learnt(family: Family = FLUX, steps: int = 8, level: str = "model") -> Trace:
    return calibration(family, level, lengths=(steps,)).trace(steps)


@dataclass(frozen=True)
class Forced(HyCa):
    """HyCa in which every cluster chose one solver."""

    choice: str = "reuse"

    def solvers(self, moments: Any, labels: Any) -> tuple[str, ...]:
        return (self.choice,) * (max(labels) + 1)


@dataclass(frozen=True)
class Everywhere:
    """One solver for all dimensions, on HyCa's plan and history."""

    choice: str
    interval: int = 3
    warmup: int = 3
    level: str = "model"
    order: int = 2

    def plan(self, sites: Any, steps: int) -> Plan:
        return Plan.every(self.interval, steps, self.warmup)

    def forecaster(self, site: Any, steps: int) -> Forecaster:
        return Solver(self.choice, max(0, self.warmup - 2), needs=3)


@families
@pytest.mark.parametrize("choice", POOL)
def test_clusters_that_choose_one_solver_are_that_solver(name: str, choice: str) -> None:
    family, results = FAMILIES[name], []
    pipe = family.make()
    for method in (Forced(interval=3, choice=choice, calibration=learnt(family, 12)), Everywhere(choice)):
        accelerate_pipeline(pipe, method)
        results.append(family.run(pipe, steps=12))
        pipe.acceleration.remove()
    assert (results[0] - results[1]).abs().max() <= 1e-4 * results[1].abs().max()


def test_strict_chooses_from_the_papers_pool_by_the_next_step() -> None:
    series = torch.randn(1, 40, 2) + torch.sin(2.2 * torch.arange(16.0)).view(-1, 1, 1) * torch.randn(1, 40, 2)
    moments = Moments.of(series, 0, -1, tuple(range(16)))
    assert HyCa(interval=4).solvers(moments, [0, 0]) == ("reuse",)
    # Without reuse; of the others bdf2_zero_slope has the smallest next-step error on sin(2.2 t).
    assert HyCa(interval=4, strict=True).solvers(moments, [0, 0]) == ("bdf2_zero_slope",)


def test_hyca_chooses_by_all_offsets_at_its_interval() -> None:
    moments, labels = Moments.of(torch.randn(16, 40, 30).cumsum(0).cumsum(0), 0, -1, tuple(range(16))), list(range(30))
    prices = {name: amplification(name) for name in SOLVERS}

    def best(pool: tuple[str, ...], interval: int, horizon: int) -> tuple[str, ...]:
        return choose(solver_errors(moments, pool, interval, horizon), labels, prices)

    assert HyCa(interval=4).solvers(moments, labels) == best(POOL, 4, 3) != best(POOL, 4, 1)
    strict = HyCa(interval=4, strict=True).solvers(moments, labels)
    assert strict == best(STRICT_POOL, 1, 1) != best(STRICT_POOL, 4, 3)


@pytest.mark.parametrize("level", ["model", "block"])
def test_fitted_weights_are_fitted_with_the_responses_of_the_sampler(level: str) -> None:
    """Feedback where features become the network's output; inside the network errors do not add up in the latent."""
    trace = learnt(level=level)
    method = Fitted(interval=3, anchors=3, feedback=0.5, level=level, calibration=Calibration({8: trace}))
    site = sites(tiny.flux().transformer, level)[0]
    moments, plan = trace.networks["transformer"][site.name][0], method.plan([site], 8)
    how = Fit(3, method.ridge, 0.5 if level == "model" else 0.0)
    own = torch.zeros(moments.dims, dtype=torch.long)
    expected = fit(moments, own, plan, trace.notes["responses"], how)
    rule = method.forecaster(site, 8)
    for s, anchors in expected.rows:
        times = [float(a) for a in anchors]
        found = rule.weights(times, float(s))[moments.leaf]
        assert found == pytest.approx(expected.weights(times, float(s))[0], rel=1e-6)


@both
def test_guidance_switched_off_in_mid_run(method: str) -> None:
    pipe = accelerate_pipeline(tiny.stable_diffusion(), method, interval=3, calibration=learnt(FAMILIES["sd"]))

    def switch(pipe: Any, step: int, t: Any, kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 4:
            pipe._guidance_scale = 1.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"][-1:]
        return kwargs

    more = {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    assert tiny.run_unet(pipe, guidance=True, **more).isfinite().all()
    # The history of the new shape begins at step 5, with as many computed steps as the plan begins with; where its
    # anchors are not those of the fit, the newest is reused.
    planned = pipe.acceleration.plan.computed()
    warmup = next(step for step in range(9) if step not in planned)
    computed = {*planned, *range(5, min(5 + warmup, 8))}
    assert sum(pipe.acceleration.report().sites[0].computed.values()) == len(computed)


def unfit(change: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline and options for which the calibration of the toy Flux is wrong."""
    pipe, options = tiny.flux(), {"calibration": learnt()}
    if change == "weights":
        pipe = tiny.flux(1)
    elif change == "model":
        pipe = tiny.stable_diffusion()
    elif change == "network class":
        pipe = tiny.dit()
    elif change == "scheduler class":
        pipe.scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    elif change == "scheduler config":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    elif change == "level":
        options["level"] = "block"
    elif change == "bare":
        options["calibration"] = replace(learnt(), notes={})
    elif change == "none":
        options = {}
    return pipe, options


@both
@pytest.mark.parametrize(
    "change", ["weights", "model", "network class", "scheduler class", "scheduler config", "level", "bare", "none"]
)
def test_a_calibration_of_something_else_is_refused(method: str, change: str) -> None:
    pipe, options = unfit(change)
    network = getattr(pipe, "transformer", None) or pipe.unet
    before = traces(pipe, network)
    with pytest.raises(ValueError, match="diffaccel calibrate"):
        accelerate_pipeline(pipe, method, **options)
    assert same(before, traces(pipe, network))
    assert "acceleration" not in vars(pipe)


@both
def test_a_run_of_other_steps_is_refused_and_the_next_is_right(method: str) -> None:
    pipe = accelerate_pipeline(tiny.flux(), method, interval=3, calibration=learnt())
    expected = tiny.run_flux(pipe)
    with pytest.raises(ValueError, match=r"for 8 steps, this run has 9: .*steps=8.*`diffaccel calibrate --steps 9`"):
        tiny.run_flux(pipe, steps=9)
    assert torch.equal(tiny.run_flux(pipe), expected)


@both
def test_a_bare_network_has_nothing_to_learn_from(method: str) -> None:
    network = tiny.flux_transformer()
    before = [dict(vars(module)) for module in network.modules()]
    with pytest.raises(TypeError, match=r"learns from runs of a pipeline: use diffaccel\.accelerate_pipeline"):
        accelerate(network, method, steps=8, calibration=calibration(FLUX))
    assert [dict(vars(module)) for module in network.modules()] == before


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (HyCa, {"clusters": 1}, "clusters must be a whole number of at least 2, got 1"),
        (HyCa, {"clusters": 9}, "clusters must be at most 8, got 9"),
        (HyCa, {"clusters": 2.5}, "clusters must be a whole number"),
        (HyCa, {"interval": 0}, "interval must be"),
        (HyCa, {"warmup": 0}, "warmup must be"),
        (Fitted, {"clusters": -1}, "clusters must be a whole number of at least 0"),
        (Fitted, {"clusters": 9}, "clusters must be at most 8, got 9"),
        (Fitted, {"anchors": 0}, "anchors must be a whole number of at least 1"),
        (Fitted, {"feedback": 2}, "feedback must be a number from 0 to 1, got 2"),
        (Fitted, {"feedback": -0.1}, "feedback must be"),
        (Fitted, {"feedback": float("nan")}, "feedback must be"),
        (Fitted, {"ridge": 1.5}, "ridge must be"),
        (Fitted, {"interval": True}, "interval must be"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_intervals_too_long_to_choose_solvers_are_refused_by_hyca() -> None:
    pipe = accelerate_pipeline(tiny.flux(), "hyca", interval=4, calibration=learnt())
    with pytest.raises(ValueError, match=r"8 steps are too short .* interval 4: it takes 10 steps"):
        tiny.run_flux(pipe)
    pipe.acceleration.remove()
    pipe = accelerate_pipeline(tiny.flux(), "fitted", interval=4, calibration=learnt())
    assert tiny.run_flux(pipe).isfinite().all()


@both
def test_from_a_file_or_a_folder_it_is_the_same(method: str, tmp_path: Path) -> None:
    for steps in (8, 9):
        learnt(steps=steps).save(tmp_path / NAME.format(level="model", steps=steps))
    file = tmp_path / NAME.format(level="model", steps=8)
    results = []
    for source in (learnt(), file, str(file), tmp_path):
        pipe = accelerate_pipeline(tiny.flux(), method, interval=3, calibration=source)
        results.append(tiny.run_flux(pipe))
    assert all(torch.equal(result, results[0]) for result in results[1:])
    # A folder holds several lengths, and may be the pipeline's own.
    assert tiny.run_flux(pipe, steps=9).isfinite().all()
    pipe = tiny.flux()
    pipe.register_to_config(_name_or_path=str(tmp_path))
    accelerate_pipeline(pipe, method, interval=3)
    assert torch.equal(tiny.run_flux(pipe), results[0])


@both
def test_files_that_are_not_there(method: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no calibration in .* at level 'model': .*diffaccel calibrate"):
        accelerate_pipeline(tiny.flux(), method, calibration=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no trace at .*diffaccel calibrate"):
        accelerate_pipeline(tiny.flux(), method, calibration=tmp_path / "none.safetensors")


def test_recording_prompts_is_running_the_pipeline() -> None:
    pipe = tiny.dit()
    before = traces(pipe, pipe.transformer)
    found = record(pipe, ["1", "2", "3"], steps=8, batch=2, seed=5)
    assert same(before, traces(pipe, pipe.transformer))
    with recording(pipe) as recorder:
        image.pictures(pipe, ["1", "2"], [5, 6], 8)
        image.pictures(pipe, ["3"], [7], 8)
    expected = worked_out(recorder.trace(), pipe.scheduler)
    assert (found.runs, found.steps) == (2, 8)
    assert found.notes == expected.notes
    for site, leaves in expected.networks["transformer"].items():
        for one, other in zip(leaves, found.networks["transformer"][site], strict=True):
            assert torch.equal(one.centred, other.centred)
    assert len(found.notes["responses"]) == 8


@both
def test_prompts_are_a_calibration(method: str) -> None:
    pipe = accelerate_pipeline(tiny.dit(), method, calibration=["1", "2"])
    tiny.run_dit(pipe, steps=50)  # the pipeline's own number of steps
    assert sum(pipe.acceleration.report().sites[0].skipped.values()) > 30


@both
def test_two_denoisers_learn_apart(method: str) -> None:
    pipe = wan()
    pipe.register_to_config(boundary_ratio=0.7)
    with recording(pipe) as recorder:
        run_wan(pipe)
    trace = worked_out(recorder.trace(), pipe.scheduler)
    counts = {name: len(next(iter(of.values()))[0].steps) for name, of in trace.networks.items()}
    assert min(counts.values()) >= 4
    accelerate_pipeline(pipe, method, interval=1 if method == "hyca" else 2, warmup=1, calibration=trace)
    run_wan(pipe)
    for name, steps in counts.items():
        (site,) = pipe.acceleration.report(name).sites
        for branch, computed in site.computed.items():
            assert computed + site.skipped.get(branch, 0) == steps
            assert (computed < steps) == (method == "fitted")


@both
def test_copies_of_a_calibrated_method_are_equal_to_it(method: str) -> None:
    pipe = accelerate_pipeline(tiny.flux(), method, interval=3, calibration=learnt())
    expected, used = tiny.run_flux(pipe), pipe.acceleration.method
    pipe.acceleration.remove()
    for twin in (copy.deepcopy(used), pickle.loads(pickle.dumps(used))):
        accelerate_pipeline(pipe, twin)
        assert torch.equal(tiny.run_flux(pipe), expected)
        pipe.acceleration.remove()


def test_what_was_tuned_is_used_unless_told_otherwise() -> None:
    trace = learnt()
    best = {str(key): {"anchors": 2, "feedback": 0.125} for key in range(1, 9)}
    tuned = Calibration({8: replace(trace, notes={**trace.notes, "tuned": best})})
    assert Fitted(interval=3, calibration=tuned).tuned(8) == (2, 0.125)
    assert Fitted(interval=3, anchors=1, calibration=tuned).tuned(8) == (1, 0.125)
    assert Fitted(interval=3, feedback=0.0, calibration=tuned).tuned(8) == (2, 0.0)
    assert Fitted(interval=3, calibration=Calibration({8: trace})).tuned(8) != (2, 0.125)


@families
def test_fitted_uses_what_it_fitted_in_the_run(name: str) -> None:
    """Weights that a run looks up are those of the fit: no step falls back to reuse for want of its anchors."""
    family = FAMILIES[name]
    options = {"interval": 3, "anchors": 3, "feedback": 0.5, "calibration": learnt(family, 12)}
    pipe = accelerate_pipeline(family.make(), "fitted", **options)
    family.run(pipe, steps=12)
    (session,) = pipe.acceleration._sessions.values()
    assert isinstance(session, Session)
    looked_up = {(step, times) for _, times, step in session._weights}
    (rule,) = {id(f.rule): f.rule for f in session.forecasters}.values()  # type: ignore[union-attr]
    assert looked_up == set(rule.rows)  # type: ignore[union-attr]
    assert len(looked_up) == 12 - len(pipe.acceleration.plan.computed())


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Trace, Trace]:
    """The bundled pipeline, what it does on training prompts, and on held-out ones from other noise."""
    pipe = image.load()
    pipe.set_progress_bar_config(disable=True)
    train = record(pipe, bundled.prompts("train")[::700][:16], steps=12)
    with recording(pipe) as recorder:
        image.pictures(pipe, bundled.prompts("held-out")[::150][:12], list(range(900, 912)), 12)
    return pipe, train, recorder.trace()


def errors_on(trace: Trace, plan: Plan, rules: dict[str, Any]) -> dict[str, float]:
    """Relative squared error of each rule on the features of a trace, over all steps the plan skips."""
    errors = dict.fromkeys(rules, 0.0)
    ((leaves,),) = ([*of.values()] for of in trace.networks.values())
    for (name, rule), moments in itertools.product(rules.items(), leaves):
        for s in set(range(trace.steps)) - set(plan.computed()):
            anchors = [a for a in plan.computed() if a < s][::-1][: rule.order + 1]
            weights = rule.weights([float(a) for a in anchors], float(s))
            weights = weights[moments.leaf] if isinstance(weights, dict) else weights
            errors[name] += float(moments.error(weights, anchors, s).sum() / moments.power([s]).sum())
    return errors


@pytest.mark.parametrize("interval", [2, 3, 4])
def test_fitted_forecasts_held_out_prompts_best(digits: tuple[Any, Trace, Trace], interval: int) -> None:
    pipe, train, held_out = digits
    (site,) = sites(pipe.transformer, "model")
    fitted = [
        Fitted(interval=interval, anchors=3, feedback=0.0, clusters=c, calibration=Calibration({12: train}))
        for c in (1, 4, 0)
    ]
    learnt = {f"fitted, {one.clusters} clusters": one.forecaster(site, 12) for one in fitted}
    others = {"reuse": Hold(), "taylor 1": Taylor(1), "taylor 2": Taylor(2)}
    errors = errors_on(held_out, fitted[0].plan([site], 12), learnt | others)
    assert max(errors[name] for name in learnt) < 0.9 * min(errors[name] for name in others), errors


def test_hyca_forecasts_held_out_prompts_better_than_each_of_its_solvers(digits: tuple[Any, Trace, Trace]) -> None:
    pipe, train, held_out = digits
    (site,) = sites(pipe.transformer, "model")
    method = HyCa(interval=2, calibration=Calibration({12: train}))
    rules = {name: Solver(name, 1, needs=3) for name in POOL} | {"hyca": method.forecaster(site, 12)}
    errors = errors_on(held_out, method.plan([site], 12), rules)
    assert errors.pop("hyca") < min(errors.values()), errors


def test_each_cluster_is_forecast_by_what_it_chose(digits: tuple[Any, Trace, Trace]) -> None:
    pipe, train, _ = digits
    (site,) = sites(pipe.transformer, "model")
    method = HyCa(interval=2, calibration=Calibration({12: train}))
    times, seen = [8.0, 6.0, 4.0], set()
    found = method.forecaster(site, 12).weights(times, 9.0)
    for moments in train.networks["transformer"][site.name]:
        own = Calibration({12: train}).labels(None, site.name, moments.leaf, 4, 12)
        chosen = method.solvers(moments, own)
        for d, group in enumerate(own):
            assert found[moments.leaf][:, d].tolist() == pytest.approx(
                Solver(chosen[group], needs=3).weights(times, 9.0)
            )
        seen |= set(chosen)
    assert len(seen) > 1


@both
def test_the_bundled_pipeline_brings_its_calibration(method: str) -> None:
    pipe = accelerate_pipeline(image.load(), method)
    pipe.set_progress_bar_config(disable=True)
    pictures = image.pictures(pipe, bundled.prompts("held-out")[:1])
    assert pictures.isfinite().all()
    assert pipe.acceleration.report().bound > 2
