"""Does auto reach what it is asked for, say what to expect, keep it, and refuse the rest? All of it measured anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffaccel import accelerate, accelerate_pipeline, load_config, save_config
from diffaccel.auto import files
from diffaccel.auto.bench import Bench, quiet
from diffaccel.auto.choice import Choice
from diffaccel.auto.prompts import LEARNT, prompts_of, split
from diffaccel.auto.request import Request
from diffaccel.auto.run import Search
from diffaccel.methods.auto import Auto
from diffaccel.metrics.speed import alternate
from diffaccel.pipelines import bundled, image
from diffaccel.plan import Plan
from tests import tiny
from tests.test_contract import same, traces

STEPS = 10
JUDGED = 6
QUICK: dict[str, Any] = {"steps": STEPS, "levels": ["model"], "pictures": JUDGED, "progress": False}
FEWER = {**QUICK, "pictures": 4}


@pytest.fixture(scope="module")
def digits() -> Any:
    """The bundled pipeline."""
    torch.set_num_threads(1)
    pipe = image.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def kept(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A choice for 38 dB in a file."""
    path = tmp_path_factory.mktemp("auto") / "choice.json"
    accelerate_pipeline(digits, "auto", psnr=38, save=path, **QUICK)
    digits.acceleration.remove()
    return path


def drawn(pipe: Any, prompts: list[str], seeds: list[int], steps: int = STEPS, batch: int | None = None) -> Tensor:
    return image.pictures(pipe, prompts, seeds, steps, batch=batch)


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """Worked out here: 20 log10 of the peak over the root mean square of what differs."""
    rms = (pictures.double() - reference.double()).pow(2).flatten(1).mean(1).sqrt()
    return 20 * torch.log10(1 / rms)


@contextmanager
def calls(network: torch.nn.Module) -> Iterator[list[int]]:
    """Counts the calls of a network."""
    count = [0]
    hook = network.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    try:
        yield count
    finally:
        hook.remove()


def test_the_fidelity_is_reached_when_it_is_measured_anew(digits: Any, kept: Path) -> None:
    _, judged = split(prompts_of(digits, None), JUDGED)
    held_out = bundled.prompts("held-out")[:16]
    full = drawn(digits, judged, list(range(JUDGED)), batch=1)
    others = drawn(digits, held_out, list(range(700, 716)))
    accelerate_pipeline(digits, "auto", choice=kept)
    expected = digits.acceleration.method.choice.quality
    found = psnr(drawn(digits, judged, list(range(JUDGED)), batch=1), full)
    elsewhere = psnr(drawn(digits, held_out, list(range(700, 716))), others)
    computed = len(digits.acceleration.plan.computed())
    digits.acceleration.remove()
    assert (expected.mean, expected.worst) == (
        pytest.approx(float(found.mean()), abs=1e-3),
        pytest.approx(float(found.min()), abs=1e-3),
    )
    assert expected.low >= 38
    assert elsewhere.mean() >= 38, "also on prompts and noise it has never seen"
    assert computed < STEPS


def test_a_kept_choice_draws_the_same_pictures_and_is_there_at_once(digits: Any, kept: Path) -> None:
    prompts = bundled.prompts("held-out")[:2]
    results = []
    for options in ({"choice": kept}, {"choice": str(kept)}, {"psnr": 38, "save": kept, **QUICK}):
        with calls(digits.transformer) as count:
            accelerate_pipeline(digits, "auto", **options)
        assert count == [0]
        results.append((drawn(digits, prompts, [5, 6]), digits.acceleration.method))
        digits.acceleration.remove()
    # The choice itself, as it was before it was in a file.
    accelerate_pipeline(digits, results[0][1])
    results.append((drawn(digits, prompts, [5, 6]), digits.acceleration.method))
    digits.acceleration.remove()
    assert all(torch.equal(pictures, results[0][0]) for pictures, _ in results)
    plain = drawn(digits, prompts, [5, 6])
    assert not torch.equal(results[0][0], plain)


def test_what_was_just_chosen_equals_what_is_read_back(tmp_path: Path) -> None:
    pipe = tiny.dit()
    options = {"psnr": 3, "steps": 8, "pictures": 4, "save": tmp_path / "c.json", "progress": False}
    try:
        accelerate_pipeline(pipe, "auto", **options)
    except ValueError as error:  # at this size skipping may not pay, whatever is skipped
        pytest.skip(str(error))
    fresh = tiny.run_dit(pipe)
    choice = pipe.acceleration.method.choice
    pipe.acceleration.remove()
    accelerate_pipeline(pipe, "auto", choice=tmp_path / "c.json")
    again = pipe.acceleration.method.choice
    assert torch.equal(tiny.run_dit(pipe), fresh)
    assert again.as_dict() == choice.as_dict()
    assert str(again) == str(choice)


@pytest.mark.slow
def test_a_lower_fidelity_never_computes_more(digits: Any, kept: Path) -> None:
    high = files.load(kept)
    pipe = accelerate_pipeline(digits, "auto", psnr=30, **FEWER)
    low = pipe.acceleration.method.choice
    pipe.acceleration.remove()
    assert low.plan.bound >= high.plan.bound
    assert low.quality.low >= 30


@pytest.mark.slow
def test_the_speed_up_is_reached_by_the_most_faithful_that_was_fast_enough(digits: Any) -> None:
    pipe = accelerate_pipeline(digits, "auto", speedup=1.3, **FEWER)
    method = pipe.acceleration.method
    choice = method.choice
    pipe.acceleration.remove()
    assert choice.speed.median >= 1.3
    assert choice.plan.bound > 1.3
    assert choice.speed.rounds >= 5
    for entry in choice.tried:
        slower = (entry["measured_speedup"] or entry["expected_speedup"]) < 1.3
        assert slower or entry["psnr"]["mean"] <= choice.quality.mean
    prompts, times = bundled.prompts("held-out")[:4], {}
    for name in ("full", "auto"):
        times[name] = lambda: drawn(digits, prompts, [1, 2, 3, 4])

    @contextmanager
    def accelerated() -> Iterator[None]:
        accelerate_pipeline(digits, method)
        try:
            yield
        finally:
            digits.acceleration.remove()

    both = {"auto": accelerated, "full": lambda: torch.no_grad()}
    found = alternate(times, rounds=5, progress=False, during=both)
    assert 1 / found["auto"].ratio(found["full"], cpu=True) >= 0.85 * 1.3, "anew, on a machine that may be busy"


def test_plain_runs_of_fewer_steps_are_told_of(digits: Any, kept: Path) -> None:
    choice = files.load(kept)
    _, judged = split(prompts_of(digits, None), JUDGED)
    full = drawn(digits, judged, list(range(JUDGED)), batch=1)
    fewer = drawn(digits, judged, list(range(JUDGED)), steps=choice.plain.steps, batch=1)
    assert choice.plain.steps < STEPS
    assert choice.plain.quality.mean == pytest.approx(float(psnr(fewer, full).mean()), abs=1e-3)
    best = replace(choice.plain, quality=replace(choice.quality, mean=choice.quality.mean + 1), ratio=1.0)
    for plain, better in ((best, True), (replace(best, quality=choice.quality), False)):
        told = replace(choice, plain=plain)
        assert told.plain_is_better == better
        assert ("fewer plain steps are the better choice" in str(told)) == better
        assert told.as_dict()["plain"]["is_better"] == better
    slower = replace(best, ratio=1.1)
    assert not replace(choice, plain=slower).plain_is_better


def test_it_says_what_it_chose_and_what_to_expect(digits: Any, kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffaccel"):
        accelerate_pipeline(digits, "auto", choice=kept)
    acceleration = digits.acceleration
    choice, plan = acceleration.method.choice, acceleration.plan
    acceleration.remove()
    assert str(choice) in caplog.text
    computed = f"{len(plan.computed())} of {STEPS} steps"
    for text in (str(choice), str(acceleration)):
        assert choice.name in text
        assert computed in text
        assert f"{choice.quality.mean:.1f} dB" in text
        assert f"worst of {JUDGED} {choice.quality.worst:.1f}" in text
        assert f"{choice.speed.median:.2f}x measured" in text
    assert "for PSNR 38 dB" in str(choice)
    assert plan.steps == STEPS, "before the first run, that of the runs it was chosen for"
    data = json.loads(kept.read_text())
    assert data["conditions"]["steps"] == STEPS
    assert data["environment"]["torch"] == torch.__version__
    assert [entry["method"] for entry in data["tried"]].count(choice.name) == 1


def test_runs_of_another_length_are_refused_and_the_next_is_right(digits: Any, kept: Path) -> None:
    accelerate_pipeline(digits, "auto", choice=kept)
    prompts = bundled.prompts("held-out")[:1]
    expected = drawn(digits, prompts, [3])
    with pytest.raises(ValueError, match=rf"chose for {STEPS} steps, this run has 9: .*num_inference_steps={STEPS}"):
        drawn(digits, prompts, [3], steps=9)
    again = drawn(digits, prompts, [3])
    digits.acceleration.remove()
    assert torch.equal(again, expected)


@pytest.mark.parametrize("change", ["weights", "scheduler config", "number of steps", "argument height", "pipeline"])
def test_a_choice_for_something_else_is_refused(kept: Path, change: str) -> None:
    pipe, options = image.load(), {}
    if change == "weights":
        with torch.no_grad():
            pipe.transformer.x_embedder.weight.mul_(1.5)
    elif change == "scheduler config":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    elif change == "number of steps":
        options = {"steps": STEPS + 1}
    elif change == "argument height":
        options = {"call": {"height": 64}}
    elif change == "pipeline":
        pipe = tiny.dit()
    before = traces(pipe, pipe.transformer)
    with pytest.raises(ValueError, match=rf"for another .*{change}.*choose anew with .*psnr=38"):
        accelerate_pipeline(pipe, "auto", choice=kept, **options)
    assert same(before, traces(pipe, pipe.transformer))
    assert "acceleration" not in vars(pipe)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"psnr": 119}, r"no acceleration reaches PSNR 119 dB .*at 10 steps: the most faithful of \d+ .* dB \(95%"),
        ({"speedup": 9.9}, r"no acceleration reaches speed-up 9.9x .*: the fastest is \w+:.*, \d\.\d\dx"),
    ],
)
def test_what_cannot_be_reached_is_said_and_the_pipeline_left_as_it_was(
    digits: Any, target: dict[str, float], message: str, tmp_path: Path
) -> None:
    prompts = bundled.prompts("held-out")[:1]
    expected = drawn(digits, prompts, [1])
    before = traces(digits, digits.transformer)
    with pytest.raises(ValueError, match=message):
        accelerate_pipeline(digits, "auto", save=tmp_path / "c.json", **target, **FEWER)
    assert same(before, traces(digits, digits.transformer))
    assert "acceleration" not in vars(digits)
    assert not list(tmp_path.iterdir())
    assert torch.equal(drawn(digits, prompts, [1]), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of speedup=4, psnr=35 and choice='file.json', got none"),
        ({"speedup": 2, "psnr": 30}, "got speedup and psnr"),
        ({"speedup": 2, "choice": "c.json"}, "got speedup and choice"),
        ({"choice": "c.json", "save": "d.json"}, "save= is for a new choice"),
        ({"speedup": 1}, "speedup must be a number above 1, got 1"),
        ({"psnr": float("nan")}, "psnr must be a number above 0"),
        ({"psnr": "35"}, "psnr must be a number above 0, got '35'"),
        ({"psnr": 30, "pictures": 3}, "pictures must be a whole number of at least 4"),
        ({"psnr": 30, "rounds": 2}, "rounds must be a whole number of at least 5"),
        ({"speedup": 30, "steps": 28}, "30x is out of reach: a run of 28 steps computes at least one"),
        ({"speedup": 12, "steps": 12}, "out of reach"),
        ({"psnr": 30, "steps": 3}, "at least 4 steps to learn from, got 3"),
        ({"psnr": 30, "levels": ["deep"]}, "FluxPipeline has no sites at level 'deep': it has sublayer, model"),
        ({"psnr": 30, "call": {"prompt": "a"}}, "call must not hold prompt"),
        ({"psnr": 30, "call": {"strength": 1}}, "FluxPipeline takes no strength"),
        ({"psnr": 30, "save": "nowhere/c.json"}, "cannot be written to nowhere/c.json"),
        ({"psnr": 30, "save": "c.txt"}, "choices are JSON files: name c.txt c.json"),
        ({"psnr": 30, "prompts": []}, "at least one prompt"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(digits: Any, options: dict[str, Any], message: str) -> None:
    with calls(digits.transformer) as count, pytest.raises(ValueError, match=message):
        accelerate_pipeline(digits, "auto", **options)
    assert count == [0]
    assert "acceleration" not in vars(digits)


def test_other_kinds_of_bad_input(digits: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="prompts must be a list"):
        accelerate_pipeline(digits, "auto", psnr=30, prompts="a red 7")
    with pytest.raises(TypeError, match=r"auto has no option 'speed_up'.*did you mean 'speedup'"):
        accelerate_pipeline(digits, "auto", speed_up=2)
    with pytest.raises(TypeError, match=r"Auto learns from runs of a pipeline: use diffaccel\.accelerate_pipeline"):
        accelerate(tiny.flux_transformer(), "auto", steps=8, speedup=2)
    with pytest.raises(ValueError, match=r"knows none for this FluxPipeline: give prompts"):
        accelerate_pipeline(tiny.flux(), "auto", psnr=30, steps=8)
    with pytest.raises(FileNotFoundError, match="no choice at"):
        accelerate_pipeline(digits, "auto", choice=tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="holds no whole choice"):
        accelerate_pipeline(digits, "auto", choice=tmp_path / "bad.json")
    with pytest.raises(ValueError, match="auto has chosen nothing yet"):
        Auto(speedup=2).plan([], 28)


def test_without_its_calibration_a_choice_is_not_whole(kept: Path, tmp_path: Path) -> None:
    if not files.load(kept).name.startswith("fitted"):
        pytest.skip("what was chosen needs no calibration")
    (tmp_path / "c.json").write_text(kept.read_text())
    with pytest.raises(FileNotFoundError, match="no trace at"):
        files.load(tmp_path / "c.json")


def test_a_folder_of_ones_own_keeps_the_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: Path) -> None:
    image.load().save_pretrained(tmp_path)
    (tmp_path / "call_defaults.json").write_text(json.dumps(bundled.call_defaults()))
    pipe, held = image.load(str(tmp_path)), files.load(kept)
    place = files.place(pipe, held.target, STEPS)
    assert place == tmp_path / "calibration-auto-psnr-38-10.json"
    files.save(held, place)
    with calls(pipe.transformer) as count:
        accelerate_pipeline(pipe, "auto", psnr=38, **QUICK)
    assert count == [0]
    assert pipe.acceleration.method.choice.name == held.name
    pipe.acceleration.remove()
    # It was made for other weights: a warning, and prompts are asked for to choose anew.
    with torch.no_grad():
        pipe.transformer.x_embedder.weight.mul_(1.5)
    with caplog.at_level(logging.WARNING, "diffaccel"), pytest.raises(ValueError, match="give prompts"):
        accelerate_pipeline(pipe, "auto", psnr=38, **QUICK)
    assert "another weights" in caplog.text
    assert files.place(image.load(), held.target, STEPS) is None, "nothing is written into the package"


def test_a_unet_is_tried_at_its_deep_level_too() -> None:
    torch.manual_seed(0)
    folder = bundled.path() / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=tiny.TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        eos_token_id=tokenizer.eos_token_id,
    )
    parts = tiny.stable_diffusion().components
    parts |= {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(config).eval(), "scheduler": DDIMScheduler()}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    image.pictures(pipe, ["a red 7"], steps=2, height=8, width=8)  # a run leaves its arguments on the pipeline
    before = traces(pipe, pipe.unet)
    request = Request.of(pipe, Auto(psnr=30, steps=6, call={"height": 8, "width": 8}))
    assert request.levels == ("sublayer", "model", "deep")
    bench = Bench(pipe, ["a red 7"], ["a blue 2", "a red 1"], 6, request.arguments, batch=2, seed=0, progress=False)
    state = Search(bench, request, bench.record(["model", "deep"]), rounds=5)
    with quiet(pipe):
        for level in ("model", "deep"):
            state.run(state.pilot(level))
    assert same(before, traces(pipe, pipe.unet))
    run = {row.level: row for row in state.table if row.quality is not None}
    assert set(run) == {"model", "deep"}
    assert all(row.timed is not None for row in run.values())
    # The same steps are skipped, but at "deep" the outer blocks run in all of them.
    assert run["deep"].computed == run["model"].computed
    assert run["deep"].quality != run["model"].quality


def test_a_choice_is_a_frozen_record(kept: Path) -> None:
    choice = files.load(kept)
    assert isinstance(choice, Choice)
    assert choice.plan == Plan.at(json.loads(kept.read_text())["plan"], STEPS)
    assert choice.method.plan([], STEPS) == choice.plan
    assert len(split(prompts_of(image.load(), None), JUDGED)[0]) == LEARNT


def test_a_choice_is_a_configuration(digits: Any, kept: Path, tmp_path: Path) -> None:
    prompts = bundled.prompts("held-out")[:1]
    accelerate_pipeline(digits, str(kept))
    expected = drawn(digits, prompts, [3])
    save_config(digits.acceleration, tmp_path / "mine.json")
    digits.acceleration.remove()
    assert load_config(tmp_path / "mine.json") == Auto(choice=tmp_path / "mine.json")
    accelerate_pipeline(digits, tmp_path / "mine.json")
    again = drawn(digits, prompts, [3])
    digits.acceleration.remove()
    assert torch.equal(again, expected)
