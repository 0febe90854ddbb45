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
    from diffaccel.pipelines.bundled.language.problems import Problem
    from diffaccel.pipelines.policy import PolicyPipeline
    from diffaccel.pipelines.text import TextDiffusionPipeline

_FOLDERS = {"flux-digits": "flux_digits", "dit-digits": "dit_digits", "sd-digits": "sd_digits"}
_UNCONDITIONAL = {"ddpm-digits": "ddpm_digits"}
_POLICIES = {"drawer-open": "policy_drawer_open", "pick-place": "policy_pick_place"}
_TEXT = {"text-problems": "text_problems"}
_CHECKER, _CLIP, _RENDERS = "digits_checker", "clip_digits", "digits_renders"

NAMES = tuple(_FOLDERS)
"""Names of the bundled pipelines that draw what a prompt asks for."""
UNCONDITIONAL = tuple(_UNCONDITIONAL)
"""Names of those that take neither prompt nor class, only a number of pictures."""
SINGLE = ("dit-digits",)
"""Those that draw one digit only: their prompts are classes, captions like all others but each a class of its own."""
POLICIES = tuple(_POLICIES)
"""Tasks of MetaWorld that there is a bundled policy for."""
TEXT = tuple(_TEXT)
"""Names of the pipelines that write text."""
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


def text_path(name: str = "text-problems") -> Path:
    """The folder of a bundled language model, for ``TextDiffusionPipeline.from_pretrained``.

    Raises:
        ValueError: there is no bundled language model of this name.
        FileNotFoundError: its folder was not installed.
    """
    if name not in _TEXT:
        raise ValueError(f"no bundled language model is called {name!r}; choose from {', '.join(TEXT)}")
    return _folder(_TEXT[name])


def text(name: str = "text-problems", folder: Path | None = None, **kwargs: Any) -> TextDiffusionPipeline:
    """A small masked diffusion language model, in float32 unless ``dtype`` says otherwise (the files hold float16).

    It answers problems with one right answer each: ``text()(text_prompts()[:4]).texts``.

    Args:
        name: one of ``TEXT``.
        folder: of another model, written by ``python -m diffaccel.pipelines.bundled.language.export``.
        kwargs: passed to ``TextDiffusionPipeline.from_pretrained``.

    Raises:
        ValueError: there is no bundled language model of this name.
        FileNotFoundError: its folder was not installed.
    """
    import torch

    from diffaccel.pipelines.text import TextDiffusionPipeline

    if "torch_dtype" not in kwargs:
        kwargs.setdefault("dtype", torch.float32)
    kwargs.setdefault("local_files_only", True)
    made: TextDiffusionPipeline = TextDiffusionPipeline.from_pretrained(
        text_path(name) if folder is None else folder, **kwargs
    )
    return made


def text_problems(
    kind: str, count: int, split: Literal["train", "held-out"] = "held-out", seed: int = 0
) -> list[Problem]:
    """Problems of one kind that the bundled language model was trained on, or such as were held out.

    Each has a ``prompt`` and an ``answer``, which the text after the prompt has to equal.

    Args:
        kind: one of ``diffaccel.pipelines.bundled.language.problems.KINDS``, such as "totals".
        count: how many, all different.
        split: "train" or "held-out".
        seed: of the problems.

    Raises:
        ValueError: there is no such kind or split.
    """
    from diffaccel.pipelines.bundled.language.problems import problems

    _check_split(split)
    return problems(kind, count, split, seed)


def text_prompts(count: int = 60, split: Literal["train", "held-out"] = "held-out", seed: int = 0) -> list[str]:
    """Prompts of all kinds in turn, so that any first few hold all kinds in equal parts.

    Args:
        count: how many, all different.
        split: "train" or "held-out".
        seed: of the problems.

    Raises:
        ValueError: there is no such split.
    """
    from diffaccel.pipelines.bundled.language.problems import KINDS

    each = -(-count // len(KINDS))
    kinds = [text_problems(kind, each, split, seed) for kind in KINDS]
    return [problem.prompt for problems in zip(*kinds, strict=True) for problem in problems][:count]


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

    _check_split(split)
    if name not in _FOLDERS:
        raise ValueError(f"no bundled pipeline that takes prompts is called {name!r}; choose from {', '.join(NAMES)}")
    return [scene.caption for scene in mixed_scenes(split) if not scene.layout or name not in SINGLE]


def _check_split(split: str) -> None:
    if split not in ("train", "held-out"):
        raise ValueError(f"split must be 'train' or 'held-out', got {split!r}")
