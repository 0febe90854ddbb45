"""Does `diffaccel calibrate` write what methods find and use, say how stable it is, and refuse what it cannot do?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffaccel import accelerate_pipeline
from diffaccel.pipelines import bundled, image
from diffaccel.trace import Trace
from tests.command_line import Capture, run
from tests.tiny import FAMILIES

SEVEN = "a red 7 on a white background"
SMALL = ["--steps", "12", "--num", "8", "--batch", "4", "--tune", "3"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def mine() -> Path:
    """A pipeline folder of the user's own, without calibrations."""
    return Path(shutil.copytree(bundled.path(), "mine", ignore=shutil.ignore_patterns("calibration-*")))


def test_a_calibration_is_written_beside_the_model_and_found_there(capsys: Capture) -> None:
    Path("prompts.txt").write_text("\n".join(bundled.prompts("train")[:8]))
    model = mine()
    status, out, err = run(capsys, "calibrate", model, "--prompts", "prompts.txt", *SMALL, "--json", "-")
    assert (status, err) == (0, "")
    data = json.loads(out)
    file = model / "calibration-model-12.safetensors"
    assert (data["output"], data["pictures"], data["steps"]) == (str(file), 8, 12)
    assert data["bytes"] == file.stat().st_size
    assert [row["clusters"] for row in data["clusters"]] == list(range(2, 9))
    assert all(-1 <= row["rand"] <= 1 and -1 <= row["silhouette"] <= 1 for row in data["clusters"])
    for shares in data["solvers"].values():
        assert sum(shares.values()) == pytest.approx(1)
    [tuned] = data["tuned"].values()
    assert min(tuned["relative_l2"]) < max(tuned["relative_l2"])
    trace = Trace.load(file)
    assert (trace.runs, trace.steps) == (2, 12)
    for method in ("hyca", "fitted:interval=3"):
        status, out, _ = run(capsys, "generate", SEVEN, "--model", model, "--steps", "12", "--method", method)
        assert status == 0
        assert "Calibration(12 steps" in out
    status, out, err = run(capsys, "generate", SEVEN, "--model", model, "--steps", "10", "--method", "hyca")
    assert (status, out) == (1, "")
    assert "calibrated for 12 steps, this run has 10" in err
    assert "diffaccel calibrate --steps 10" in err


def test_tuning_takes_the_choice_with_the_smallest_error() -> None:
    trace = Trace.load(bundled.path() / "calibration-model-28.safetensors")
    from diffaccel.tuning import CHOICES

    for tuned in trace.notes["tuned"].values():
        best = tuned["relative_l2"].index(min(tuned["relative_l2"]))
        assert (tuned["anchors"], tuned["feedback"]) == CHOICES[best]


@pytest.mark.parametrize("method", ["hyca", "fitted"])
def test_the_bundled_pipeline_has_calibrations_for_its_recommended_steps(method: str) -> None:
    pipe = image.load()
    pipe.set_progress_bar_config(disable=True)
    accelerate_pipeline(pipe, method, interval=4)
    assert image.pictures(pipe, [SEVEN], steps=28).isfinite().all()
    assert len(pipe.acceleration.plan.computed()) == (9 if method == "hyca" else 10)
    assert image.pictures(pipe, [SEVEN], steps=50).isfinite().all()


def test_fitted_is_nearer_to_the_full_run_than_taylorseer_on_prompts_it_has_not_seen() -> None:
    torch.set_num_threads(1)
    pipe = image.load()
    pipe.set_progress_bar_config(disable=True)
    prompts = bundled.prompts("held-out")[:12]

    def error(method: str, **options: object) -> torch.Tensor:
        accelerate_pipeline(pipe, method, interval=6, last=True, **options)
        try:
            drawn = image.pictures(pipe, prompts, list(range(12)))
        finally:
            pipe.acceleration.remove()
        return (drawn - full).square().mean((1, 2, 3))

    full = image.pictures(pipe, prompts, list(range(12)))
    fitted, taylor = error("fitted"), error("taylorseer", order=2)
    assert (fitted < taylor).sum() >= 11
    assert fitted.median() < taylor.median() / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("flux-digits", "-o is needed"),
        ("flux-digits -o x.pt", "name it x.safetensors"),
        ("flux-digits -o nowhere/x.safetensors", "there is no folder nowhere"),
        ("mine", "give --prompts FILE"),
        ("mine --prompts nothing.txt", "nothing.txt cannot be read"),
        ("nothing", "there is no 'nothing'"),
        ("flux-digits --tune 0 -o x.safetensors", "--tune: must be a whole number of at least 1"),
        ("flux-digits --level layer -o x.safetensors", "invalid choice: 'layer'"),
        ("dit --prompts p.txt --height 32", "DiTPipeline takes no height"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(
    arguments: str, message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "load", lambda *_: pytest.fail("the model was loaded"))
    mine()
    Path("p.txt").write_text("3")
    FAMILIES["dit"].make().save_pretrained("dit")
    before = sorted(Path().rglob("*"))
    status, out, err = run(capsys, "calibrate", *arguments.split())
    assert (status, out) == (2, "")
    assert message in err
    assert sorted(Path().rglob("*")) == before
