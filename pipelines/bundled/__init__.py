"""The small trained pipelines that are shipped, and the checker that reads their pictures; everything works offline.

Model code is imported when it is used, so importing this module is light.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from diffaccel.pipelines.bundled.digits.checker import DigitsChecker
    from diffaccel.pipelines.policy import PolicyPipeline

_FOLDERS = {"flux-digits": "flux_digits", "dit-digits": "dit_digits", "sd-digits": "sd_digits"}
_UNCONDITIONAL = {"ddpm-digits": "ddpm_digits"}
_POLICIES = {"drawer-open": "policy_drawer_open", "pick-place": "policy_pick_place"}
_CHECKER, _CLIP, _RENDERS = "digits_checker", "clip_digits", "digits_renders"

NAMES = tuple(_FOLDERS)
"""Names of the bundled pipelines that draw what a prompt asks for."""
UNCONDITIONAL = tuple(_UNCONDITIONAL)
"""Names of those that take neither prompt nor class, only a number of pictures."""
SINGLE = ("dit-digits",)
"""Those that draw one digit only: their prompts are classes, captions like all others but each a class of its own."""
POLICIES = tuple(_POLICIES)
"""Tasks of MetaWorld that there is a bundled policy for."""
OBSERVATIONS = "observations.safetensors"
"""File of recorded observations in the folder of a policy."""


def _folder(folder: str) -> Path:
    place = Path(__file__).resolve().parent / folder
    if not (place / "README.md").is_file():
        raise FileNotFoundError(f"the bundled folder {place} is missing or incomplete; reinstall diffaccel")
    return place


def path(name: str = "flux-digits") -> Path:
    """The folder of a bundled pipeline, for ``from_pretrained``.

    Raises:
        ValueError: there is no bundled pipeline of this name.
        FileNotFoundError: the folder was not installed.
    """
    folders = _FOLDERS | _UNCONDITIONAL
    if name not in folders:
        raise ValueError(f"no bundled pipeline is called {name!r}; choose from {', '.join(folders)}")
    return _folder(folders[name])


def load(name: str = "flux-digits", **kwargs: Any) -> DiffusionPipeline:
    """A bundled pipeline, in float32 unless ``dtype`` says otherwise (the files hold float16).

    Calls need :func:`call_defaults`: ``pipe("a red 7 on a white background", **call_defaults())``. ``dit-digits`` takes
    the numbers of classes: ``pipe(pipe.get_label_ids(["a red 7 on a white background"]), ...)``, and ``ddpm-digits`` a
    number of pictures: ``pipe(batch_size=4, ...)``.

    Args:
        name: one of ``NAMES`` or ``UNCONDITIONAL``.
        kwargs: passed to ``DiffusionPipeline.from_pretrained``.

    Raises:
        ValueError: there is no bundled pipeline of this name.
        FileNotFoundError: the folder was not installed.
    """
    import torch
    from diffusers import DiffusionPipeline

    if "torch_dtype" not in kwargs:
        kwargs.setdefault("dtype", torch.float32)
    kwargs.setdefault("local_files_only", True)
    return DiffusionPipeline.from_pretrained(path(name), **kwargs)


def call_defaults(name: str = "flux-digits") -> dict[str, Any]:
    """Arguments with which a bundled pipeline makes the pictures it was trained on: size, steps, guidance, text length.

    Without height and width a ``FluxPipeline`` makes pictures of 128 latents a side, whatever it was trained on.

    Raises:
        ValueError: there is no bundled pipeline of this name.
        FileNotFoundError: the folder was not installed.
    """
    defaults: dict[str, Any] = json.loads((path(name) / "call_defaults.json").read_text())
    return defaults


def dots(name: str = "sd-digits") -> list[str]:
    """Names of the Dots that are shipped for a bundled pipeline.

    Raises:
        ValueError: there is no bundled pipeline of this name.
        FileNotFoundError: the folder was not installed.
    """
    return sorted(place.parent.name for place in (path(name) / "dots").glob("*/config.json"))


def dot_path(name: str = "sd-digits", dot: str = "own-uniform") -> Path:
    """The folder of a Dot, for ``accelerate_pipeline(pipe, "morse", dot=...)`` and ``MorseDot.from_pretrained``.

    Args:
        name: of the pipeline.
        dot: one of ``dots(name)``.

    Raises:
        ValueError: there is no bundled pipeline of this name, or it has no such Dot.
        FileNotFoundError: the folder was not installed.
    """
    if dot not in (known := dots(name)):
        raise ValueError(f"{name} has no Dot {dot!r}; it has {', '.join(known) or 'none'}")
    return path(name) / "dots" / dot


def policy_path(task: str) -> Path:
    """The folder of the bundled policy of a task, for ``PolicyPipeline.from_pretrained``.

    Raises:
        ValueError: there is no policy for this task.
        FileNotFoundError: its folder was not installed.
    """
    if task not in _POLICIES:
        raise ValueError(f"there is no bundled policy for {task!r}; choose from {', '.join(POLICIES)}")
    return _folder(_POLICIES[task])


def policy(task: str = "pick-place", folder: Path | None = None) -> PolicyPipeline:
    """A small diffusion policy that was trained on demonstrations, in float32 (the files hold float16).

    ``policy("pick-place")(observations).actions`` needs no simulator; ``bundled.metaworld`` has one.

    Args:
        task: one of ``POLICIES``.
        folder: of another policy, written by ``python -m diffaccel.pipelines.bundled.metaworld.export``.

    Raises:
        ValueError: there is no policy for this task.
        FileNotFoundError: its folder was not installed.
    """
    import torch

    from diffaccel.pipelines.policy import PolicyPipeline

    place = policy_path(task) if folder is None else folder
    made: PolicyPipeline = PolicyPipeline.from_pretrained(place, dtype=torch.float32, local_files_only=True)
    return made


def policy_observations(task: str = "pick-place", folder: Path | None = None) -> Tensor:
    """Observations of the demonstrations a bundled policy was trained on, shape (64, 2, 39): what caches learn from.

    They come from all phases of the task in random order, so that any first few are a fair sample.

    Args:
        task: one of ``POLICIES``.
        folder: of another policy, as for ``policy``.

    Raises:
        ValueError: there is no policy for this task.
        FileNotFoundError: its folder was not installed.
    """
    from safetensors.torch import load_file

    place = policy_path(task) if folder is None else folder
    observations: Tensor = load_file(place / OBSERVATIONS)["observations"]
    return observations


def checker() -> DigitsChecker:
    """The network that reads a picture and says which caption it shows: ``checker().read(images)``.

    Raises:
        FileNotFoundError: its folder was not installed.
    """
    from diffaccel.pipelines.bundled.digits.checker import DigitsChecker

    model: DigitsChecker = DigitsChecker.from_pretrained(_folder(_CHECKER), local_files_only=True)
    model.float().eval()
    return model


def clip_path() -> Path:
    """The folder of the small CLIP, a ``CLIPModel`` trained on the captions and pictures of the bundled pipelines.

    Its scores compare with each other, never with those of another CLIP.

    Raises:
        FileNotFoundError: it was not installed.
    """
    return _folder(_CLIP)


def renders_path(name: str = "flux-digits") -> Path:
    """Statistics of renders of held-out handwriting in held-out scenes, in features of ``fd_digits``.

    Args:
        name: the bundled pipeline whose pictures are compared; scenes are of one digit where it draws no others, and
            grey handwriting as ``ddpm.coloured`` shows it where it draws that.

    Raises:
        ValueError: there is no bundled pipeline of this name.
        FileNotFoundError: they were not installed.
    """
    path(name)  # for its errors
    kind = "_grey" if name in UNCONDITIONAL else "_single" if name in SINGLE else ""
    return _folder(_RENDERS) / f"fd_digits{kind}.npz"


def prompts(split: Literal["train", "held-out"] = "held-out", name: str = "flux-digits") -> list[str]:
    """All captions the bundled pipelines were trained on, or all that were held out from training.

    They are shuffled, always in the same way, and captions of one and of two digits come in turn, so that any first few
    hold both kinds in equal parts; there are 96 such in the held-out split, then pairs only.

    For ``dit-digits`` they are the captions of one digit. It was trained on both splits, since a class that was never
    seen has no embedding; the splits then only keep calibration and evaluation apart.

    Raises:
        ValueError: the split has another name, or there is no bundled pipeline of this name that takes prompts.
    """
    from diffaccel.pipelines.bundled.digits.captions import mixed_scenes

    if split not in ("train", "held-out"):
        raise ValueError(f"split must be 'train' or 'held-out', got {split!r}")
    if name not in _FOLDERS:
        raise ValueError(f"no bundled pipeline that takes prompts is called {name!r}; choose from {', '.join(NAMES)}")
    return [scene.caption for scene in mixed_scenes(split) if not scene.layout or name not in SINGLE]
