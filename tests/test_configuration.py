"""Methods in files and by one word: what is saved comes back, and what does not fit is refused with the right name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffaccel import SPEEDS, FirstBlock, Fitted, HyCa, Plan, TaylorSeer, accelerate_pipeline, load_config, save_config
from diffaccel.auto.choice import Choice, Conditions, Plain, Speed
from diffaccel.auto.quality import Quality
from diffaccel.auto.search import Target
from diffaccel.calibration import Calibration, find
from diffaccel.cli import main
from diffaccel.methods import resolve, written_out
from diffaccel.methods.auto import Auto
from diffaccel.methods.spelling import label, parse_method
from tests import tiny
from tests.test_contract import calibration

DOCUMENTED = """\
cache_config:
  max_warmup_steps: 8
  warmup_interval: 2
  max_cached_steps: -1
  max_continuous_cached_steps: 2
  Fn_compute_blocks: 1
  Bn_compute_blocks: 0
  residual_diff_threshold: 0.12
  enable_taylorseer: true
  taylorseer_order: 1
"""


def written(folder: Path, content: str, name: str = "config.yaml") -> Path:
    """A file of this content."""
    path = folder / name
    path.write_text(content)
    return path


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "config.yml"])
@pytest.mark.parametrize(
    "method",
    [
        TaylorSeer(),
        TaylorSeer(6, 1, 2, level="output", forecast="newton", last=True, after=20),
        TaylorSeer(schedule="diffusers"),
        TaylorSeer(schedule=Plan.at([0, 1, 2, 6], 9)),
        TaylorSeer(schedule=Plan(((True, False, True), (True, True, False)))),
        FirstBlock(0.08, warmup=4, order=1, max_skipped=2),
        FirstBlock(math.inf, schedule=Plan.at([0, 3], 5)),
        HyCa(clusters=8, strict=True),
        Fitted(ridge=1e-6, feedback=0.25, schedule="even"),
        Fitted(schedule=Plan.every(3, 10), computed=4),
        Auto(speedup=2.5, prompts=["a fox", 7], call={"guidance": 3.5, "height": 64}),
    ],
    ids=written_out,
)
def test_what_is_saved_comes_back(method: Any, name: str, tmp_path: Path) -> None:
    save_config(method, tmp_path / name)
    assert load_config(tmp_path / name) == method
    assert load_config(str(tmp_path / name), "WanPipeline") == method


def test_files_are_readable(tmp_path: Path) -> None:
    save_config(TaylorSeer(schedule=Plan.at([0, 1, 5], 9)), tmp_path / "config.yaml")
    assert (tmp_path / "config.yaml").read_text() == (
        "method: taylorseer\ninterval: 4\norder: 2\nwarmup: 3\nlevel: model\nforecast: taylor\nlast: false\n"
        "schedule:\n  steps: 9\n  computed: [0, 1, 5]\n"
    )
    save_config(HyCa(), tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "method": "hyca",
        "interval": 4,
        "clusters": 4,
        "warmup": 3,
        "level": "model",
        "last": False,
        "strict": False,
    }


def test_an_acceleration_is_saved_and_applied(tmp_path: Path) -> None:
    pipe = accelerate_pipeline(tiny.flux(), "taylorseer", interval=3, order=1)
    expected = tiny.run_flux(pipe)
    for i, what in enumerate((pipe, pipe.acceleration, pipe.acceleration.method)):
        save_config(what, tmp_path / f"{i}.json")
        other = accelerate_pipeline(tiny.flux(), tmp_path / f"{i}.json")
        assert other.acceleration.method == pipe.acceleration.method
        assert torch.equal(tiny.run_flux(other), expected)
    other = accelerate_pipeline(tiny.flux(), str(tmp_path / "0.json"), interval=4)
    assert other.acceleration.method == dataclasses.replace(pipe.acceleration.method, interval=4)


def test_what_a_file_leaves_out_is_the_preset_of_the_pipeline(tmp_path: Path) -> None:
    path = written(tmp_path, "method: taylorseer\norder: 2\n")
    pipe = accelerate_pipeline(tiny.flux(), path)
    assert pipe.acceleration.method == TaylorSeer(interval=6, order=2, warmup=3)
    assert load_config(path) == TaylorSeer(order=2)


def test_a_file_may_name_a_speed(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "method: fast\nlevel: block\n")) == TaylorSeer(
        **{**SPEEDS["fast"], "level": "block"}
    )


@pytest.mark.parametrize("method", ["hyca", "fitted"])
def test_a_calibration_is_found_again(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = tiny.FAMILIES["flux"]
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    trace = calibration(family).traces[8]
    trace.save(tmp_path / "there" / "calibration.safetensors")
    monkeypatch.chdir(tmp_path)
    pipe = accelerate_pipeline(family.make(), method, interval=3, calibration="there/calibration.safetensors")
    expected = family.run(pipe)
    save_config(pipe, "here/config.yaml")
    assert yaml.safe_load(Path("here/config.yaml").read_text())["calibration"] == "../there/calibration.safetensors"
    # Both folders moved, and started from elsewhere.
    (tmp_path / "moved").mkdir()
    for folder in ("here", "there"):
        (tmp_path / folder).rename(tmp_path / "moved" / folder)
    monkeypatch.chdir(tmp_path / "moved" / "there")
    other = accelerate_pipeline(family.make(), tmp_path / "moved" / "here" / "config.yaml")
    assert torch.equal(family.run(other), expected)


def test_a_calibration_of_the_pipelines_own_folder_is_not_written(tmp_path: Path) -> None:
    found = Calibration({}, source=None, found=True)
    save_config(Fitted(calibration=found), tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == Fitted()
    prompts = ["a fox", "a car"]
    save_config(Fitted(calibration=Calibration({}, source=prompts, found=True)), tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == Fitted(calibration=prompts)


def test_of_auto_what_was_chosen_is_saved(tmp_path: Path) -> None:
    method = TaylorSeer(3, schedule=Plan.at([0, 1, 4], 8))
    quality, speed = Quality(40.0, 39.0, 41.0, 37.0, 8), Speed(2.5, 2.4, 2.6, 5, "wall", 1)
    choice = Choice(
        target=Target(speedup=2.5),
        name="taylorseer:interval=3",
        method=method,
        plan=method.plan([], 8),
        quality=quality,
        speed=speed,
        plain=Plain(3, quality, speed, 1.0),
        conditions=Conditions("FluxPipeline", 8, 8, {}, {}, "cpu"),
        contention=1.0,
        tried=[],
        environment={},
    )
    save_config(Auto(choice=choice), tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == method
    save_config(Auto(choice=tmp_path / "choice.json"), tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"method": "auto", "choice": "choice.json"}
    assert load_config(tmp_path / "config.yaml") == Auto(choice=str(tmp_path / "choice.json"))


def test_a_calibration_in_no_file_is_refused(tmp_path: Path) -> None:
    family = tiny.FAMILIES["flux"]
    trace = calibration(family).traces[8]
    pipe = family.make()
    family.run(pipe)
    for made in (calibration(family), trace, find(pipe, trace, "model")):
        with pytest.raises(ValueError, match=r"in no file: .*save\(path\)"):
            save_config(Fitted(calibration=made), tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method: taylorsear", "unknown method 'taylorsear': did you mean 'taylorseer'"),
        ("interval: 4", "no method is named; give method: one of taylorseer, first_block"),
        ("method: taylorseer\nintervall: 4", "no option 'intervall': did you mean 'interval'"),
        ("method: fitted\nnetwork: unet", "fitted has no option 'network'"),
        ("method: taylorseer\ninterval: four", "interval must be a whole number, got 'four'"),
        ("method: taylorseer\ninterval: 4.0", "interval must be a whole number, got 4.0"),
        ("method: taylorseer\ninterval: true", "interval must be a whole number, got True"),
        ("method: taylorseer\ninterval: 0", "interval must be a whole number of at least 1"),
        ("method: taylorseer\nlast: 1", "last must be true or false, got 1"),
        ("method: taylorseer\nlevel: 3", "level must be a word, got 3"),
        ("method: taylorseer\nafter: x", "after must be a whole number or null, got 'x'"),
        ("method: taylorseer\nschedule: [0, 1]", r"schedule must be a plan such as .* or a word or null"),
        ("method: taylorseer\nschedule: {steps: 4, computed: [0, a]}", "schedule must be a plan such as"),
        ("method: taylorseer\nschedule: {steps: 4, computed: [0, 4]}", r"steps \[4\] are outside a run of 4 steps"),
        ("method: taylorseer\nschedule: often", "schedule must be a diffaccel.plan.Plan or 'diffusers', got 'often'"),
        ("method: first_block\nthreshold: '0.1'", "threshold must be a number, got '0.1'"),
        ("method: fitted\ncalibration: 3", "calibration must be a file, a folder or a list of prompts"),
        ("- taylorseer", "must hold names and values"),
        ("method: [", "is no YAML"),
    ],
)
def test_refused_with_what_to_do(content: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no JSON"):
        load_config(written(tmp_path, "{", "config.json"))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.yaml"):
        accelerate_pipeline(tiny.flux(), tmp_path / "missing.yaml")
    with pytest.raises(ValueError, match=r"ends in \.json, \.yaml, \.yml, got config\.toml"):
        save_config(TaylorSeer(), "config.toml")
    with pytest.raises(TypeError, match="only methods of diffaccel can be saved"):
        save_config("taylorseer", tmp_path / "config.json")


def test_the_documented_file_of_cache_dit(tmp_path: Path) -> None:
    path = written(tmp_path, DOCUMENTED)
    assert load_config(path) == FirstBlock(0.12, warmup=8, warmup_interval=2, order=1, max_skipped=2)
    pipe = accelerate_pipeline(tiny.flux(), path)
    tiny.run_flux(pipe, steps=12)
    assert {0, 2, 4, 6} <= set(pipe.acceleration.plan.computed())


@pytest.mark.parametrize(
    ("lines", "method"),
    [
        ("", FirstBlock(0.08, warmup=8)),
        ("max_warmup_steps: 0\nresidual_diff_threshold: 0.2", FirstBlock(0.2)),
        ("taylorseer_order: 2", FirstBlock(0.08, warmup=8, order=2)),
        ("enable_taylorseer: true", FirstBlock(0.08, warmup=8, order=1)),
        ("enable_taylorseer: false\ntaylorseer_order: 2", FirstBlock(0.08, warmup=8)),
        ("num_inference_steps: 28\nenable_separate_cfg: true", FirstBlock(0.08, warmup=8)),
        ("steps_computation_mask: [1, 0, 1, 0]", FirstBlock(0.08, schedule=Plan.at([0, 2], 4))),
        (
            "steps_computation_mask: [1, 0, 1, 0]\nsteps_computation_policy: static\ntaylorseer_order: 1",
            FirstBlock(math.inf, order=1, schedule=Plan.at([0, 2], 4)),
        ),
    ],
)
def test_settings_of_cache_dit(lines: str, method: FirstBlock, tmp_path: Path) -> None:
    text = "cache_config:\n" + "".join(f"  {line}\n" for line in ["Fn_compute_blocks: 1", *lines.splitlines()])
    assert load_config(written(tmp_path, text)) == method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "cache_config: {}",
            "Fn_compute_blocks=8, which is meant where it is left out: .*; write Fn_compute_blocks: 1",
        ),
        ("cache_config: {Fn_compute_blocks: 8}", "Fn_compute_blocks=8: first_block probes one block"),
        (
            "cache_config: {Fn_compute_blocks: 1, Bn_compute_blocks: 2}",
            "Bn_compute_blocks=2: .*write Bn_compute_blocks: 0",
        ),
        (
            "cache_config: {Fn_compute_blocks: 1, max_cached_steps: 9}",
            "max_cached_steps=9: .*max_continuous_cached_steps",
        ),
        ("cache_config: {Fn_compute_blocks: 1, max_warmup_step: 4}", "did you mean 'max_warmup_steps'"),
        ("cache_config: {Fn_compute_blocks: 1, residual_diff_threshold: a}", "threshold must be a number"),
        ("cache_config: {Fn_compute_blocks: 1, max_warmup_steps: a}", "max_warmup_steps must be a whole number"),
        ("cache_config: {Fn_compute_blocks: 1, steps_computation_mask: [0, 1]}", "does not compute step 0"),
        ("cache_config: {Fn_compute_blocks: 1, steps_computation_mask: 10}", "must be a list of 0 and 1"),
        ("cache_config: {Fn_compute_blocks: 1, steps_computation_policy: static}", "needs a steps_computation_mask"),
        ("cache_config: {Fn_compute_blocks: 1, cfg_diff_compute_separate: false}", "every guidance branch decides"),
        ("cache_config: 3", "cache_config must hold names and values"),
        ("cache_config: {Fn_compute_blocks: 1}\nparallelism_config: {tp_size: 2}", "not parallelism_config"),
    ],
)
def test_settings_of_cache_dit_that_cannot_be_had(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize("word", SPEEDS)
@pytest.mark.parametrize("pipeline", ["FluxPipeline", "WanPipeline", "StableDiffusionPipeline"])
def test_a_word_is_the_same_for_every_pipeline(word: str, pipeline: str) -> None:
    assert resolve(word, pipeline, {}) == TaylorSeer(**SPEEDS[word])
    assert resolve(word, pipeline, {"order": 0}).order == 0


def test_words_are_in_order_and_valid_for_every_number_of_steps() -> None:
    for steps in range(1, 120):
        counts = [len(TaylorSeer(**options).plan([], steps).computed()) for options in SPEEDS.values()]
        assert counts == sorted(counts, reverse=True)
        assert 1 <= counts[-1] <= counts[0] <= steps
    counts = [len(TaylorSeer(**options).plan([], 28).computed()) for options in SPEEDS.values()]
    assert counts == sorted(set(counts), reverse=True)


@pytest.mark.parametrize("steps", [28, 50])
@pytest.mark.parametrize("word", ["slow", "medium", "fast"])
def test_words_are_the_most_faithful_settings_recorded(word: str, steps: int) -> None:
    recorded = json.loads((Path(__file__).parents[1] / "benchmarks" / "speeds.json").read_text())
    assert {**SPEEDS[word], **recorded["words"][word]} == SPEEDS[word]
    rows = [row for row in recorded["rows"] if row["steps"] == steps]
    settings = [row for row in rows if row.get("forecast") == "taylor"]
    (own,) = [row for row in settings if row["last"] and (row["interval"], row["order"]) == _rule(word)]
    assert own["psnr_db"] == max(row["psnr_db"] for row in settings if row["computed"] <= own["computed"])
    (plain,) = [row for row in rows if row.get("plain") == own["computed"]]
    assert own["psnr_db"] > plain["psnr_db"] + 3
    assert own["computed"] == len(TaylorSeer(**SPEEDS[word]).plan([], steps).computed())


def _rule(word: str) -> tuple[int, int]:
    return SPEEDS[word]["interval"], SPEEDS[word]["order"]


def test_words_in_errors_and_tables() -> None:
    with pytest.raises(
        ValueError, match=r"unknown method 'ultr': did you mean 'ultra'.*by speed: slow, medium, fast, ultra"
    ):
        accelerate_pipeline(tiny.flux(), "ultr")
    with pytest.raises(TypeError, match="no option 'intervall'"):
        accelerate_pipeline(tiny.flux(), "fast", intervall=3)
    method = resolve("fast", "FluxPipeline", {})
    assert label(method, {}, "fast") == f"fast, {label(method, {})}"
    assert label(TaylorSeer(4, 2), {"level": "block"}, "taylorseer") == "TaylorSeer N=4 O=2 level=block"
    assert label(TaylorSeer(4, 2), {}, "here/config.yaml") == "here/config.yaml, TaylorSeer N=4 O=2"
    assert label(FirstBlock(0.1), {}, "first_block") == "FirstBlock R=0.1 O=0"
    name, options = parse_method("first_block:threshold=inf,max_skipped=2")
    assert resolve(name, "FluxPipeline", options) == FirstBlock(math.inf, max_skipped=2)


@pytest.mark.parametrize("name", ["fast", "config.yaml"])
def test_words_and_files_on_the_command_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "method: fast\n")
    assert main(["info", "flux-digits", "--method", f"{name}:order=1", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = TaylorSeer(**{**SPEEDS["fast"], "order": 1})
    assert found["method"] == written_out(expected)
    assert found["plan"] == [expected.plan([], 28).computed()]


def test_first_block_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "flux-digits", "--method", "first_block:threshold=0.1"]) == 0
    assert "decides while it runs which steps are computed" in capsys.readouterr().out
    # What the first block added is kept as well, beside one anchor of each order.
    assert main(["info", "flux-digits", "--method", "first_block:order=1", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    level = found["networks"]["transformer"]["levels"]["model"]
    assert (found["plan"], found["anchors"], level["bytes"]) == (None, 3, 3 * level["bytes_per_anchor"])


def test_the_level_of_lite_mode_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "flux-digits", "--method", "taylorseer:level=output", "--json", "-"]) == 0
    level = json.loads(capsys.readouterr().out)["networks"]["transformer"]["levels"]["output"]
    assert level["sites"] == ["proj_out"]
    assert level["bytes_per_anchor"] > 0


@pytest.mark.parametrize(
    ("method", "message"),
    [("missing.yaml", "there is no file missing.yaml"), ("fst", "did you mean 'fast'")],
)
def test_wrong_usage_on_the_command_line(method: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "flux-digits", "--method", method]) == 2
    assert message in capsys.readouterr().err
