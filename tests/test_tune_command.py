"""Does `diffaccel tune` print what was tried, keep what was chosen, and refuse what cannot be done?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffaccel.auto import files
from diffaccel.pipelines import bundled, image
from tests.command_line import Capture, run
from tests.tiny import FAMILIES

SEVEN = "a red 7 on a white background"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_choice_is_printed_kept_and_used(capsys: Capture) -> None:
    torch.set_num_threads(1)
    Path("prompts.txt").write_text("\n".join(bundled.prompts("train")[:8]))
    options = "--psnr 25 --steps 8 --pictures 4 --level model --prompts prompts.txt -o c.json --json data.json"
    status, out, _ = run(capsys, "tune", "flux-digits", *options.split())
    assert status == 0
    data, choice = json.loads(Path("data.json").read_text()), files.load("c.json")
    assert (data["method"], data["output"]) == (choice.name, "c.json")
    assert data["psnr"]["low"] >= 25
    [chosen] = [line for line in out.splitlines() if line.endswith("chosen")]
    assert choice.name in chosen
    assert f"{choice.quality.mean:.1f}" in chosen
    assert f"{choice.plain.steps} plain steps" in out
    assert str(choice) in out
    assert sum(line.startswith((" fitted:", " taylorseer:")) for line in out.splitlines()) == len(choice.tried)
    for method in ("auto:choice=c.json", "c.json"):
        status, out, _ = run(capsys, "generate", SEVEN, "--steps", "8", "--method", method, "-o", "p.png")
        assert status == 0
        assert f"{len(choice.plan.computed())} of 8 steps computed" in out
    status, _, err = run(capsys, "generate", SEVEN, "--steps", "9", "--method", "c.json", "-o", "p.png")
    assert status == 1
    assert "chose for 8 steps, this run has 9" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("flux-digits", "one of the arguments --speedup --psnr is required"),
        ("flux-digits --speedup 2 --psnr 30 -o c.json", "not allowed with argument"),
        ("flux-digits --speedup 2", "-o is needed, since flux-digits is no folder of yours"),
        ("flux-digits --speedup 28 -o c.json", "out of reach: a run of 28 steps"),
        ("flux-digits --speedup 1 -o c.json", "speedup must be a number above 1"),
        ("flux-digits --psnr 30 --steps 2 -o c.json", "at least 4 steps to learn from"),
        ("flux-digits --psnr 30 --pictures 2 -o c.json", "pictures must be a whole number of at least 4"),
        ("flux-digits --psnr 30 -o c.txt", "name c.txt c.json"),
        ("flux-digits --psnr 30 -o nowhere/c.json", "cannot be written to nowhere/c.json"),
        ("flux-digits --psnr 30 --prompts none.txt -o c.json", "none.txt cannot be read"),
        ("flux-digits --psnr 30 --level layer -o c.json", "invalid choice: 'layer'"),
        ("nothing --psnr 30", "there is no 'nothing'"),
        ("dit --psnr 30 --height 32", "DiTPipeline takes no height"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    arguments: str, message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "load", lambda *_: pytest.fail("the model was loaded"))
    FAMILIES["dit"].make().save_pretrained("dit")
    before = sorted(Path().rglob("*"))
    status, out, err = run(capsys, "tune", *arguments.split())
    assert (status, out) == (2, "")
    assert message in err
    assert sorted(Path().rglob("*")) == before
