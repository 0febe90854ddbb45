"""Does the installed wheel work away from the checkout, with nothing missing and nothing too many?"""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffaccel

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
SHIPPED_WEIGHTS = {
    "clip_digits": ".safetensors",
    "ddpm_digits": ".safetensors",
    "digits_checker": ".safetensors",
    "digits_renders": ".npz",
    "dit_digits": ".safetensors",
    "flux_digits": ".safetensors",
    "policy_drawer_open": ".safetensors",
    "policy_pick_place": ".safetensors",
    "sd_digits": ".safetensors",
    "text_problems": ".safetensors",
}

Run = Callable[..., subprocess.CompletedProcess[str]]


def source_files() -> Iterator[Path]:
    """Files below diffaccel/, its two links followed, relative to the repository's root."""
    for folder, subfolders, names in os.walk(ROOT / "diffaccel", followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        yield from ((Path(folder) / name).relative_to(ROOT) for name in names)


def test_list_of_packages_is_the_folders_with_code() -> None:
    folders = {".".join(file.parent.parts) for file in source_files() if file.suffix == ".py"}
    assert SETUPTOOLS["packages"] == sorted(folders)


@pytest.mark.parametrize("name", ["metrics", "pipelines"])
def test_folder_lies_at_the_top_and_is_imported_by_a_relative_link(name: str) -> None:
    assert (ROOT / "diffaccel" / name).readlink() == Path("..", name)
    assert SETUPTOOLS["package-dir"][f"diffaccel.{name}"] == name


def test_all_leaves_out_xformers_and_the_core_leaves_out_torchvision() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert "xformers" in extras
    assert not any("xformers" in requirement for requirement in extras["all"])
    for requirement in PROJECT["project"]["dependencies"] + extras["dev"]:
        assert not requirement.startswith("torchvision")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that no build folder is left in the checkout or taken from it."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("diffaccel", "metrics", "pipelines"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", dist, source], check=True, capture_output=True, text=True)
    [built] = dist.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a program of a fresh environment that holds the wheel, in a folder with a user's own modules."""
    environment, work = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("work")
    venv.create(environment, symlinks=True)
    programs = environment / "bin"
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-compile"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, capture_output=True, text=True)
    # The dependencies come from this environment. Only its folders are shared, not its .pth files, so that an
    # editable install of the checkout stays out.
    [site_packages] = environment.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(shared))
    for name in ("metrics.py", "pipelines.py"):
        (work / name).write_text("raise RuntimeError('this is a module of the user, not of diffaccel')")

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [programs / program, *arguments],
            cwd=work,
            env=os.environ | {"PYTHONPATH": str(work)},
            capture_output=True,
            text=True,
        )

    return run


def test_wheel_holds_every_source_file_and_weight_and_only_one_package(wheel: Path) -> None:
    names = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    packed = {name for name in names if not name.parts[0].endswith(".dist-info")}
    assert packed == {
        file
        for file in source_files()
        if file.suffix == ".py" or file.name == "py.typed" or SHIPPED_WEIGHTS.keys() & set(file.parts)
    }
    assert {name.parts[0] for name in packed} == {"diffaccel"}
    assert any(name.name == "LICENSE" for name in names - packed)


@pytest.mark.parametrize("name", SHIPPED_WEIGHTS)
def test_weights_are_shipped_with_a_model_card(wheel: Path, name: str) -> None:
    shipped = [Path(file) for file in zipfile.ZipFile(wheel).namelist() if f"/bundled/{name}/" in file]
    assert any(file.suffix == SHIPPED_WEIGHTS[name] for file in shipped)
    assert any(file.name == "README.md" for file in shipped)


def test_installed_package_is_the_wheels_and_leaves_the_top_level_alone(run: Run) -> None:
    modules = "diffaccel", "diffaccel.methods", "diffaccel.metrics", "diffaccel.pipelines.bundled"
    show = "print(sys.prefix, *(sys.modules[name].__file__ for name in sys.argv[1:]), sep='\\n')"
    result = run("python", "-c", f"import sys, {', '.join(modules)}; {show}", *modules)
    assert result.returncode == 0, result.stderr
    prefix, *files = result.stdout.splitlines()
    assert len(files) == len(modules)
    assert all(Path(file).is_relative_to(prefix) for file in files)
    assert not Path(prefix).is_relative_to(ROOT)


def test_command_line_tells_its_version_and_its_usage(run: Run) -> None:
    version = run("diffaccel", "--version")
    assert version.returncode == 0, version.stderr
    assert version.stdout.split()[-1] == diffaccel.__version__
    usage = run("diffaccel", "--help")
    assert usage.returncode == 0, usage.stderr
    assert "generate" in usage.stdout


def test_command_line_draws_with_the_shipped_weights(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "seven.png"
    result = run("diffaccel", "generate", "a red 7 on a white background", "-o", str(picture))
    assert result.returncode == 0, result.stderr
    red, green, blue = np.moveaxis(np.asarray(Image.open(picture).convert("RGB"), dtype=int), -1, 0)
    white = np.minimum(red, np.minimum(green, blue)) > 220
    ink = (red > 150) & (np.maximum(green, blue) < 110)
    assert white.mean() > 0.5
    assert 0.02 < ink.mean() < 0.4
