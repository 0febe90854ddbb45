"""Does the command line do what it is asked, say what it did, and refuse in one line what it cannot do?"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffaccel
from diffaccel import cli
from diffaccel.commands.arguments import LEVELS as COMMAND_LEVELS
from diffaccel.pipelines import bundled
from diffaccel.sites import LEVELS
from tests.tiny import FAMILIES

Capture = pytest.CaptureFixture[str]

SEVEN, TWO = "a red 7 on a white background", "a blue 2 on a black background"


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_plain_picture_shows_what_was_asked_for(capsys: Capture) -> None:
    status, out, err = run(capsys, "generate", SEVEN, "-o", "seven.png", "--json", "seven.json")
    assert (status, err) == (0, "")
    assert out.startswith("flux-digits: 1 picture of 32x32, 28 steps, seed 0, float32 on cpu")
    assert f"wrote seven.png  {SEVEN}" in out
    with Image.open("seven.png") as picture:
        assert picture.size == (32, 32)
        assert bundled.checker().read([picture]) == [SEVEN]
    data = json.loads(Path("seven.json").read_text())
    assert data["arguments"] == bundled.call_defaults()
    assert (data["steps"], data["height"], data["width"], data["outputs"]) == (28, 32, 32, ["seven.png"])
    assert data["environment"]["diffaccel"] == diffaccel.__version__
    assert "method" not in data


def test_the_last_step_is_computed_if_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    method = ["--method", "taylorseer", "--interval", "4", "--last"]
    status, out, _ = run(capsys, "generate", SEVEN, "--steps", "8", "-o", "p.png", "--json", "-", *method)
    assert status == 0
    assert json.loads(out)["plan"] == [[0, 1, 2, 6, 7]]


def test_accelerated_pictures_one_file_a_prompt(capsys: Capture) -> None:
    method = ["--method", "taylorseer", "--interval", "3", "--order", "0", "--warmup", "1", "--level", "block"]
    status, out, err = run(capsys, "generate", SEVEN, TWO, "--steps", "7", "--seed", "5", "-o", "p.png", *method)
    assert (status, err) == (0, "")
    assert (
        "TaylorSeer(interval=3, order=0, warmup=1, level='block', forecast='taylor', last=False): 3 of 7 steps computed"
        in out
    )
    assert sorted(path.name for path in Path().iterdir()) == ["p-1.png", "p-2.png"]
    # A picture depends on its prompt and seed, not on those drawn beside it.
    run(capsys, "generate", TWO, "--steps", "7", "--seed", "5", "-o", "alone.png", *method)
    together, alone = (np.asarray(Image.open(file), int) for file in ("p-2.png", "alone.png"))
    assert np.abs(together - alone).max() <= 1


def test_comparison_measures_both_and_puts_them_side_by_side(capsys: Capture) -> None:
    options = ["--compare", "--steps", "6", "--interval", "2", "--warmup", "2", "-o", "both.png"]
    status, out, err = run(capsys, "generate", SEVEN, TWO, *options, "--json", "both.json")
    assert (status, err) == (0, "")
    data = json.loads(Path("both.json").read_text())
    assert data["plan"] == [[0, 1, 3, 5]]
    assert (data["computed"], data["bound"], data["rounds"]) == ("4 of 6 steps", 1.5, 9)
    assert {name: len(seconds) for name, seconds in data["seconds"].items()} == {"baseline": 9, "accelerated": 9}
    assert data["speedup_range"][0] <= data["speedup"] <= data["speedup_range"][1]
    assert data["cache_bytes"] > 0
    assert data["identical"] == [False, False]
    assert all(10 < value < 80 for value in data["psnr_db"])
    assert all(0 < value < 1 for value in data["relative_l2"])
    for words in ("the default of --compare", "4 of 6 steps", "1.50x", "median of 9 rounds", "wrote both.png", SEVEN):
        assert words in out
    with Image.open("both.png") as sheet:
        assert sheet.width > 3 * 192
        assert sheet.height > 2 * 192


def test_comparison_with_a_plan_that_skips_nothing_is_identical(capsys: Capture) -> None:
    options = ["--compare", "--steps", "3", "--interval", "1", "--rounds", "1", "--json", "-"]
    status, out, err = run(capsys, "generate", SEVEN, *options)
    assert status == 0
    assert "nothing is skipped" in err
    data = json.loads(out)
    assert (data["identical"], data["psnr_db"], data["relative_l2"]) == ([True], [None], [0])
    assert (data["rounds"], data["bound"], data["outputs"]) == (1, 1, ["compare.png"])
    assert run(capsys, "generate", SEVEN, *options[:-2], "--quiet")[2] == ""


def test_pipeline_in_a_folder_is_loaded_by_diffusers(capsys: Capture) -> None:
    shutil.copytree(bundled.path(), "mine")
    status, out, err = run(capsys, "generate", SEVEN, TWO, "--model", "mine", "--compare", "--steps", "3")
    assert status == 0
    assert err.startswith("diffaccel: warning: nothing is skipped")
    assert err.count("\n") == 1, "a warning is given once, not once a run"
    assert "One run of each is no measurement of speed: add --rounds 5." in out
    assert Path("compare.png").is_file()


def test_class_conditional_pipeline(capsys: Capture) -> None:
    FAMILIES["dit"].make().save_pretrained("toy")
    model = ["--model", "toy", "--method", "taylorseer", "--steps", "8"]
    status, out, err = run(capsys, "generate", "3", "7", *model, "--dtype", "bfloat16", "--json", "-")
    assert (status, err) == (0, "")
    data = json.loads(out)
    assert (data["plan"], data["dtype"], data["batch"]) == ([[0, 1, 5]], "bfloat16", 1), "the preset of DiTPipeline"
    status, out, err = run(capsys, "generate", "3", "--height", "32", *model)
    assert (status, out) == (2, "")
    assert "DiTPipeline takes no height" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method tailorseer", "unknown method 'tailorseer': did you mean 'taylorseer'?"),
        ("--method taylorseer --interval 0", "interval must be a whole number of at least 1, got 0"),
        ("--compare --order -1", "order must be a whole number of at least 0, got -1"),
        ("--interval 4", "--interval belongs to a method: add --method taylorseer"),
        ("--rounds 4", "--rounds belongs to --compare"),
        ("--level layer", "invalid choice: 'layer'"),
        ("--dtype int8", "invalid choice: 'int8'"),
        ("--steps 0", "--steps: must be a whole number of at least 1, got '0'"),
        ("--seed 1.5", "--seed: must be a whole number of at least 0, got '1.5'"),
        ("--guidance high", "--guidance: must be a number of at least 0, got 'high'"),
        ("--guidance nan", "--guidance: must be a number of at least 0, got 'nan'"),
        ("--model nothing", "there is no 'nothing': give flux-digits"),
        ("--model .", "has no model_index.json"),
        ("--device toaster", "--device toaster is not known"),
        ("--device meta", "--device meta computes nothing"),
        ("-o .", "-o . is a folder"),
        ("-o nowhere/x.png", "there is no folder nowhere"),
        ("-o x.doc", "name it x.png"),
        ("--json nowhere/x.json", "there is no folder nowhere"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_loaded(
    arguments: str, message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffaccel.pipelines import image

    monkeypatch.setattr(image, "load", lambda *_: pytest.fail("the model was loaded"))
    status, out, err = run(capsys, "generate", SEVEN, *arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith("diffaccel: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(Path().iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_without_cuda(capsys: Capture) -> None:
    status, _, err = run(capsys, "generate", SEVEN, "--device", "cuda")
    assert status == 2
    assert err.startswith("diffaccel: error: --device cuda cannot be used here")


def test_failures_at_run_time_say_so_and_debug_shows_where(capsys: Capture) -> None:
    shutil.copytree(bundled.path(), "broken")
    next(Path("broken/transformer").glob("*.safetensors")).write_bytes(b"no weights")
    status, out, err = run(capsys, "generate", SEVEN, "--model", "broken")
    assert (status, out) == (1, "")
    assert err.startswith("diffaccel: error: cannot load broken: ")
    assert err.count("\n") == 1
    with pytest.raises(OSError, match="cannot load broken"):
        run(capsys, "generate", SEVEN, "--model", "broken", "--debug")


def test_prompts_the_bundled_pipeline_was_not_trained_on_are_pointed_out(capsys: Capture) -> None:
    status, _, err = run(capsys, "generate", "a white 3 on a blue background", "--steps", "2")
    assert status == 0
    assert err.startswith("diffaccel: warning: flux-digits was not trained on prompts like this: unknown foreground")
    assert err.count("\n") == 1


def test_env_names_versions_and_machine(capsys: Capture) -> None:
    status, out, _ = run(capsys, "env", "--json", "-")
    assert status == 0
    assert {"diffaccel", "torch", "diffusers", "platform", "gpu"} <= json.loads(out).keys()


def test_levels_are_those_of_the_library() -> None:
    assert COMMAND_LEVELS == LEVELS


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in ("generate", "generate-text", "info"))]
)
def test_help_and_version_import_no_torch(arguments: list[str]) -> None:
    program = (
        f"import sys; from diffaccel.cli import main; status = main({arguments}); assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cli_root())
    assert (result.returncode, result.stderr) == (0, "")
    assert "diffaccel" in result.stdout


def cli_root() -> Path:
    """The checkout, from which `diffaccel` is imported."""
    return Path(__file__).parents[1]


def test_names_of_commands_and_options_lead_to_an_error_of_usage(capsys: Capture) -> None:
    unknown: Any = [["paint", "x"], ["generate", "x", "--colour"], ["generate"], ["generate-text"], ["info"], []]
    for arguments in unknown:
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("diffaccel: error: ")
        assert err.count("\n") == 1
