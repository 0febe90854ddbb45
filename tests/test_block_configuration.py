"""Methods with schedules of blocks in files and on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diffaccel import accelerate_pipeline, load_config, save_config
from diffaccel.methods.blockwise import Acs, Bac, Uniform
from diffaccel.methods.by_effect import Effect
from diffaccel.schedule_file import BlockSchedules
from tests.command_line import run
from tests.test_block_schedules import accelerated, made
from tests.test_contract_blockwise import run_policy
from tests.test_policy_pipeline import observations

PROMPT = "a red 7 on a white background"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return accelerated(observations(), updates=4, bubbling=2, order=1)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_configuration_holds_the_schedules(pipe: Any, suffix: str, tmp_path: Path) -> None:
    save_config(pipe, path := tmp_path / f"method.{suffix}")
    assert load_config(path) == pipe.acceleration.method
    other = accelerate_pipeline(made(), path)
    assert torch.equal(run_policy(other), run_policy(pipe))
    assert other.acceleration.method == pipe.acceleration.method
    assert "decoder.layers.0.sa" in path.read_text()
    assert len(path.read_text().splitlines()) < 60  # a block's steps are on one line


def test_a_file_of_schedules_alone_says_all_of_the_method(pipe: Any, tmp_path: Path) -> None:
    pipe.acceleration.method.schedules.save(path := tmp_path / "schedules.json")
    assert load_config(path) == pipe.acceleration.method
    assert torch.equal(run_policy(accelerate_pipeline(made(), path)), run_policy(pipe))


@pytest.mark.parametrize("method", [Uniform(updates=3), Uniform(every=4, order=1), Bac(updates=7), Effect(probes=3)])
def test_methods_without_schedules_come_back(method: Any, tmp_path: Path) -> None:
    save_config(method, path := tmp_path / "method.json")
    assert load_config(path) == method


def test_what_is_yet_to_be_learnt_is_named(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "method.json"
    save_config(Acs(calibration="a cat"), path)
    assert load_config(path) == Acs(calibration=["a cat"])
    save_config(Acs(calibration=tmp_path / "schedules.json"), path)
    assert json.loads(path.read_text())["calibration"] == "schedules.json"
    assert load_config(path) == Acs(calibration=str(tmp_path / "schedules.json"))
    schedules = pipe.acceleration.method.schedules
    save_config(Acs(calibration=schedules), path)
    assert load_config(path) == Acs(schedules=schedules)
    with pytest.raises(ValueError, match=r"observations are in no file.*save its acceleration"):
        save_config(Acs(calibration=observations()), path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rule": "best"}, r"unknown method 'best'"),
        ({"settings": 3}, "'settings' is 3"),
        ({"settings": {"upd": 3}}, "bac has no option 'upd'.*updates"),
        ({"rows": {"a": [1]}}, "must rise from 0"),
        ({"format": 9}, "install a newer one"),
    ],
)
def test_damaged_files_are_told(pipe: Any, change: dict[str, Any], told: str, tmp_path: Path) -> None:
    data = {**pipe.acceleration.method.schedules.as_data(), **change}
    (path := tmp_path / "schedules.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=told) as error:
        accelerate_pipeline(made(), path)
    assert str(path) in str(error.value)


def test_data_of_schedules_come_back(pipe: Any) -> None:
    schedules = pipe.acceleration.method.schedules
    assert BlockSchedules.from_data(schedules.as_data()) == schedules
    assert BlockSchedules.from_data(json.loads(json.dumps(schedules.as_data()))) == schedules


def test_the_command_line_draws_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "seven.png")
    status, out, _ = run(capsys, "generate", PROMPT, "-o", output, "--method", "uniform:updates=4", "--steps", "8")
    assert status == 0
    assert "4 of 8 steps computed" in out
    bundled = accelerate_pipeline(bundled_pipeline(), "bac", calibration=[PROMPT], updates=3)
    bundled.acceleration.method.schedules.save(path := tmp_path / "schedules.json")
    first = bundled.acceleration.method.schedules
    for method in (f"bac:calibration={path}", str(path), f"bac:updates=3,calibration={PROMPT}"):
        status, out, error = run(capsys, "generate", PROMPT, "-o", output, "--method", method)
        assert (status, error.count("error")) == (0, 0)
        assert f"{first.mean_updates:.1f} of {first.steps} steps on average computed" in out


def bundled_pipeline() -> Any:
    from diffaccel.pipelines import image

    return image.load("flux-digits")


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("bac:updates=4", r"Bac learns its schedules from the pipeline: give calibration="),
        ("effect:calibration=x", "use method='bac'"),
        ("acs:calibration=missing.json", "there is no file missing.json"),
        ("uniform:interval=3", "uniform has no option 'interval'"),
        ("uniform:every=3,updates=3", "give updates or every, not both"),
        ("uniform:updates=1000", "1 to 28 of 28 steps.*got 1000"),
    ],
)
def test_the_command_line_tells_what_is_wrong(
    method: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run(capsys, "generate", PROMPT, "-o", str(tmp_path / "o.png"), "--method", method)
    assert status in (1, 2)
    assert error.startswith("diffaccel: error: ")
    assert re.search(told, error)


def test_info_tells_sites_and_what_is_not_known_yet(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "info", "flux-digits", "--method", "uniform:updates=5")
    assert (status, "5 of 28" in out, "branch *" in out) == (0, True, True)
    status, out, _ = run(capsys, "info", "flux-digits", "--method", "bac:updates=5")
    assert (status, "learns its schedules from the pipeline" in out) == (0, True)
