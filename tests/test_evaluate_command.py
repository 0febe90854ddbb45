"""Does `diffaccel evaluate` write what it found, go on where it stopped, and refuse what it cannot do?"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffaccel import cli
from diffaccel.pipelines import bundled
from tests import command_line
from tests.command_line import Capture
from tests.tiny import FAMILIES

SMALL = ["--num", "4", "--steps", "6", "--rounds", "2", "--resamples", "5", "--method", "taylorseer:interval=2,order=1"]


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    return command_line.run(capsys, "evaluate", *arguments)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small evaluation of the bundled pipeline, its pictures saved."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    status = cli.main(["evaluate", *SMALL, "--steps-baseline", "2", "--save-images", "-o", str(folder), "--quiet"])
    assert status == 0
    return folder


def pictures(folder: Path, count: int = 6, side: int = 32, shift: int = 0) -> Path:
    """A folder of random pictures."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        values = generator.integers(0, 200, (side, side, 3)).astype(np.uint8) + np.uint8(shift)
        Image.fromarray(values).save(folder / f"{i}.png")
    return folder


def test_result_holds_every_candidate_with_its_numbers(evaluated: Path) -> None:
    data = json.loads((evaluated / "result.json").read_text())
    candidates = {candidate["name"]: candidate for candidate in data["candidates"]}
    assert list(candidates)[:2] == ["full run, 6 steps", "TaylorSeer N=2 O=1"]
    assert {"2 steps", "4 steps"} <= candidates.keys()
    seer, full = candidates["TaylorSeer N=2 O=1"], candidates["full run, 6 steps"]
    assert (seer["computed"], seer["bound"]) == (4, 1.5)  # steps 0, 1, 2 and 4
    assert seer["time"]["speedup_low"] <= seer["time"]["speedup"] <= seer["time"]["speedup_high"]
    assert full["time"]["speedup"] == 1
    assert {"psnr", "latent", "exact", "fid", "fid_full", "clip", "caption"} == seer["metrics"].keys()
    assert (full["metrics"]["psnr"]["identical"], full["metrics"]["exact"]["value"]) == (4, 100)
    assert 20 < seer["metrics"]["psnr"]["value"] < 80
    assert {gain["metric"] for gain in data["gains"]} == {"psnr", "latent", "clip", "caption"}
    assert data["extractor"]["name"] == "fd_digits"
    assert len(data["extractor"]["weights"]) == 64
    assert data["clip_model"]["name"] == "clip_digits"
    assert data["request"]["texts"] == bundled.prompts()[:4]
    assert any("fd_digits is not FID" in warning for warning in data["warnings"])


def test_report_is_one_file_with_the_pictures_in_it(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text()
    assert page.count("data:image/") >= 4 * 4
    assert set(re.findall(r"""(?:src|href)=["']?(\w+:|#)""", page)) <= {"data:", "#"}
    assert (evaluated / "trade_off.png").read_bytes().startswith(b"\x89PNG")


def test_evaluating_again_draws_nothing_and_says_the_same(
    evaluated: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from diffaccel.evaluation.subject import Subject

    folder = shutil.copytree(evaluated, tmp_path / "again")
    before = json.loads((folder / "result.json").read_text())
    monkeypatch.setattr(Subject, "draw", lambda *_: pytest.fail("a picture was drawn"))
    status, out, _ = run(capsys, *SMALL, "--steps-baseline", "2", "-o", folder, "--html", "page.html", "--json", "-")
    assert status == 0
    after = json.loads(out)
    assert (after["candidates"], after["gains"]) == (before["candidates"], before["gains"])
    assert Path("page.html").read_text() == (folder / "report.html").read_text()


def test_another_request_does_not_touch_the_folder(evaluated: Path, capsys: Capture) -> None:
    before = sorted(path.name for path in evaluated.rglob("*"))
    status, _, err = run(capsys, *SMALL, "--seed", "1", "-o", evaluated)
    assert status == 2
    assert "holds an evaluation with another seed: give another folder with -o, or --fresh" in err
    assert sorted(path.name for path in evaluated.rglob("*")) == before


def test_saved_pictures_are_scored_like_the_run(evaluated: Path, capsys: Capture) -> None:
    full, seer = (next((evaluated / "images").glob(f"{name}*")) for name in ("full", "taylorseer"))
    options = ["--metrics", "psnr,exact,clip,fid", "--clip-model", bundled.clip_path(), "--extractor", "fd_digits"]
    status, out, err = run(capsys, "--images", seer, "--reference", full, *options, "--json", "-", "-o", "scored")
    assert (status, err) == (0, "")
    found = json.loads(out)["candidates"][0]["metrics"]
    kept = json.loads((evaluated / "result.json").read_text())["candidates"][1]["metrics"]
    assert found["psnr"]["value"] == pytest.approx(kept["psnr"]["value"], abs=2), "rounded to 8 bits"
    assert found["clip"]["value"] == pytest.approx(kept["clip"]["value"], abs=0.1)
    assert found["fid"]["value"] == pytest.approx(kept["fid_full"]["value"], rel=0.05)
    assert found["exact"]["n"] == 4
    assert {path.name for path in Path("scored").iterdir()} == {"result.json", "report.html"}


def test_class_conditional_pipeline_in_a_folder(capsys: Capture) -> None:
    FAMILIES["dit"].make().save_pretrained("toy")
    Path("classes.txt").write_text("3\n7\n\n")
    options = ["--model", "toy", "--prompts", "classes.txt", "--steps", "6", "--rounds", "1", "-o", "out"]
    status, out, err = run(capsys, *options, "--method", "taylorseer:interval=2,order=0,warmup=1")
    assert status == 0, err
    assert "TaylorSeer N=2 O=0" in out
    data = json.loads(Path("out/result.json").read_text())
    assert data["request"]["num"] == 2
    assert [metric["key"] for metric in data["metrics"]] == ["psnr", "latent", "exact"]


def test_own_extractor_and_own_statistics(evaluated: Path, capsys: Capture) -> None:
    real = pictures(Path("real"), side=48)
    extractor = ["--extractor", "tests.small_extractor:Small", "--resize", "clean"]
    assert cli.main(["statistics", str(real), "-o", "real.npz", *extractor]) == 0
    assert "6 pictures" in capsys.readouterr().out
    scored = ["--images", next((evaluated / "images").glob("full*")), "--metrics", "fid,kid,precision", "--json", "-"]
    found = []
    for reference in ("real", "real.npz"):
        status, out, err = run(capsys, *scored, "--reference", reference, *extractor)
        assert (status, err) == (0, "")
        found.append(json.loads(out))
    assert found[0]["candidates"] == found[1]["candidates"]
    assert found[0]["metrics"][0]["label"] == "fd[tests.small_extractor:Small]"
    status, _, err = run(capsys, *scored, "--reference", "real.npz", "--extractor", "fd_digits")
    assert status == 2
    assert "the reference" in err
    status, _, err = run(capsys, *scored, "--reference", "real.npz", *extractor[:2], "--resize", "tf1")
    assert status == 2
    assert "another extractor: " in err
    assert "resize" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method tailorseer", "did you mean 'taylorseer'"),
        ("--method taylorseer:interval=0", "interval must be a whole number of at least 1, got 0"),
        ("--method taylorseer:depth=2", "has no option 'depth'"),
        ("--method taylorseer --method taylorseer", "is given twice"),
        ("--metrics psnr,fod", "--metrics knows no 'fod'"),
        ("--metrics clip --model toy --prompts p.txt", "--metrics clip needs --clip-model"),
        ("--metrics caption --model toy --prompts p.txt", "reads pictures of flux-digits, dit-digits, sd-digits only"),
        ("--model toy", "give --prompts FILE"),
        ("--prompts nothing.txt", "--prompts nothing.txt cannot be read"),
        ("--prompts empty.txt", "--prompts empty.txt holds no prompt"),
        ("--prompts odd.json", "should hold a list of texts"),
        ("--steps 6 --steps-baseline 6", "--steps-baseline 6 is not fewer than the 6 steps"),
        ("--num 0", "--num: must be a whole number of at least 1"),
        ("--reference nowhere", "--reference nowhere is neither a folder of pictures nor a statistics file"),
        ("--reference empty", "there is no picture in empty"),
        ("--reference broken.npz", "broken.npz is no statistics file, or damaged"),
        ("--extractor nothing:at_all", "nothing"),
        ("--weights nowhere.pt", "--weights nowhere.pt: there is no such file"),
        ("--clip-model nowhere/at/all", "nowhere/at/all"),
        ("--images real", "--images needs --reference"),
        ("--images real --reference real --num 4", "--num belongs to generating"),
        ("--images empty --reference real", "there is no picture in empty"),
        ("--images real --reference other", "pictures without a partner"),
        ("--images real --reference large", "32x32 pixels, its partner"),
        ("--images real --reference real --metrics latent", "picture files hold no latents"),
        ("--images real --reference stats.npz", "--metrics psnr compares pictures: give --reference a folder"),
        ("--images real --reference real --metrics caption", "needs a manifest.json with a prompt"),
        ("--html nowhere/page.html", "there is no folder nowhere"),
        ("-o full", "full is not empty and holds no evaluation"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded_or_written(
    arguments: str, message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffaccel.evaluation.subject import Subject

    monkeypatch.setattr(Subject, "pictures", lambda *_: pytest.fail("a picture was drawn"))
    shutil.copytree(bundled.path(), "toy")
    pictures(Path("real"))
    pictures(Path("other"), count=4)
    pictures(Path("large"), side=40)
    pictures(Path("full"))
    Path("empty").mkdir()
    for name, text in {"p.txt": "a red 7", "empty.txt": "\n \n", "odd.json": "[1]", "broken.npz": "no"}.items():
        Path(name).write_text(text)
    before = sorted(Path().rglob("*"))
    status, out, err = run(capsys, *arguments.split())
    assert err.startswith("diffaccel: error: "), err
    assert message in err
    assert (status in (1, 2), out, err.count("\n")) == (True, "", 1)
    assert sorted(Path().rglob("*")) == before


def test_damaged_pictures_are_named(capsys: Capture) -> None:
    real, other = pictures(Path("real")), pictures(Path("other"), shift=3)
    (real / "2.png").write_bytes((real / "2.png").read_bytes()[:200])
    status, out, err = run(capsys, "--images", real, "--reference", other)
    assert (status, out) == (1, "")
    assert "cannot read the picture real/2.png" in err


def test_missing_partners_are_left_out_if_allowed(capsys: Capture) -> None:
    pictures(Path("real")), pictures(Path("other"), count=4, shift=20)
    status, out, _ = run(capsys, "--images", "real", "--reference", "other", "--allow-missing", "--json", "-")
    data: dict[str, Any] = json.loads(out)
    assert status == 0
    assert data["request"]["num"] == 4
    assert data["candidates"][0]["metrics"]["psnr"]["value"] == pytest.approx(-20 * np.log10(20 / 255), abs=1e-3)
    assert "2 pictures without a partner were left out" in data["warnings"]


def test_weights_that_are_not_here_have_an_exit_status_of_their_own(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(Path("cache").absolute()))
    monkeypatch.setenv("TMPDIR", str(Path("cache").absolute()))
    pictures(Path("real"))
    status, out, err = run(capsys, "--images", "real", "--reference", "real", "--metrics", "fid")
    assert (status, out) == (3, "")
    assert "inception-2015-12-05" in err
    assert err.count("\n") == 1


def test_damaged_weights_are_refused(capsys: Capture) -> None:
    pictures(Path("real"))
    Path("weights.pt").write_bytes(b"not weights")
    options = ["--metrics", "fid", "--extractor", "inception", "--weights", "weights.pt"]
    status, out, err = run(capsys, "--images", "real", "--reference", "real", *options)
    assert (status in (1, 2), out) == (True, "")
    assert "weights.pt" in err
