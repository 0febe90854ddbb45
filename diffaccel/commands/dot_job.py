"""What `diffaccel train-dot` is asked for, checked as far as it can be without weights."""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.commands import UsageError, device_of
from diffaccel.commands.dot_options import SHAPE
from diffaccel.commands.model import size_of
from diffaccel.morse.recipe import DotRecipe
from diffaccel.pipelines.source import INDEX, call_defaults, locate, read_json

if TYPE_CHECKING:
    from torch.utils.data import Dataset

CONFIG, CHECKPOINT = "config.json", "checkpoint"


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        recipe: its settings.
        dataset: what is trained on.
        scheduler: class of the scheduler Dot is trained for.
        shape: arguments of a new Dot.
        output: folder to write.
    """

    recipe: DotRecipe
    dataset: Dataset[Mapping[str, Any]]
    scheduler: type[Any]
    shape: dict[str, Any]
    output: Path

    @classmethod
    def of(cls, args: argparse.Namespace) -> Job:
        """The training that the options describe.

        Raises:
            UsageError, ImportError, OSError, ValueError: it cannot be done, or a file is missing.
        """
        from diffaccel.morse.coordinates import Coordinates
        from diffaccel.morse.schedulers import check_scheduler, injects_noise

        recipe, model, output = _recipe(args), _Model.of(args.model), _output(args)
        shape = {name: value for name in SHAPE if (value := getattr(args, name)) is not None}
        if args.dot and shape:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in shape)
            raise UsageError(f"--dot {args.dot} is trained on as it is: leave out {given}, or --dot for a new Dot")
        if args.mixed_precision == "fp16" and device_of(args.device).type == "cpu":
            raise UsageError("--mixed-precision fp16 needs a GPU: take bf16 or no")
        model.check(args)
        if "body" in shape:
            shape["body_config"] = shape.pop("body")
        scheduler = model.scheduler(args.scheduler)
        shape.setdefault("residual_space", "sample" if injects_noise(scheduler) else "epsilon")
        config = _dot_config(Path(args.dot), model) if args.dot else model.new_dot(shape).config
        check_scheduler(scheduler, config["residual_space"])
        Coordinates.of(scheduler, config["residual_space"])  # for its errors
        return cls(recipe, model.data(args), type(scheduler), shape, output)


@dataclass(frozen=True)
class _Model:
    """A pipeline without weights."""

    source: str
    index: dict[str, Any]
    kind: type[Any]
    network: Any

    @classmethod
    def of(cls, name: str) -> _Model:
        source = locate(name)
        index = read_json(source)
        import torch

        from diffaccel.blueprint import denoisers
        from diffaccel.pipelines import image

        kind, found = image.pipeline_class(index), denoisers(source, index, torch.float32)
        if len(found) != 1:
            raise UsageError(f"morse is for pipelines with one denoiser, {kind.__name__} has {', '.join(found)}")
        return cls(source, index, kind, next(iter(found.values())))

    def check(self, args: argparse.Namespace) -> None:
        """Raise UsageError or ValueError for what a call of the pipeline does not take."""
        from diffaccel.pipelines import image

        accepted = inspect.signature(self.kind.__call__).parameters
        for name in size_of(args):
            if name not in accepted:
                raise UsageError(f"{self.kind.__name__} takes no {name}: leave it out")
        if args.guidance is not None:
            image.guidance_arguments(self.kind, self.network.config, args.guidance[0])

    def new_dot(self, shape: Mapping[str, Any]) -> Any:
        """A Dot without weights."""
        import torch

        from diffaccel.morse.dot import MorseDot

        config = {name: value for name, value in self.network.config.items() if not name.startswith("_")}
        with torch.device("meta"):
            return MorseDot(type(self.network).__name__, config, **shape)

    def scheduler(self, name: str | None) -> Any:
        """The scheduler that Dot is trained for."""
        import diffusers

        name = name or str((self.index.get("scheduler") or (None, None))[1])
        kind = getattr(diffusers, name, None)
        if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
            raise UsageError(f"{name} is no scheduler of diffusers {diffusers.__version__}: give --scheduler CLASS")
        made: Any = kind
        return made.from_config(read_json(self.source, "scheduler/scheduler_config.json"))

    def data(self, args: argparse.Namespace) -> Dataset[Mapping[str, Any]]:
        """What is trained on."""
        from diffaccel.blueprint import default_size, latent_scale
        from diffaccel.morse.dataset import PictureFolder, condition_of
        from diffaccel.morse.renders import RENDERED, BundledRenders

        if args.data == "bundled":
            if args.model not in RENDERED:
                raise UsageError(f"--data bundled is for {', '.join(RENDERED)}: give a folder of pictures")
            if size_of(args):
                raise UsageError("--data bundled is of one size: leave out --height and --width")
            return BundledRenders(args.model, seed=args.seed)
        defaults, own = call_defaults(self.source), default_size(self.network, latent_scale(self.source, self.index))
        height = args.height or defaults.get("height") or own[0]
        width = args.width or defaults.get("width") or own[1]
        has_vae = (self.index.get("vae") or (None, None))[1] is not None
        config = read_json(self.source, "vae/config.json") if has_vae else self.network.config
        named = (self.index.get("id2label") or {}).items()
        labels = {name.strip(): int(number) for number, names in named for name in names.split(",")}
        return PictureFolder(args.data, (height, width), config.get("in_channels", 3), condition_of(self.kind), labels)


def _recipe(args: argparse.Namespace) -> DotRecipe:
    asked = {name: value for name, value in vars(args).items() if name in DotRecipe.__dataclass_fields__}
    return DotRecipe(**{**asked, "guidance": tuple(args.guidance) if args.guidance else None})


def _output(args: argparse.Namespace) -> Path:
    """The folder to write."""
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise UsageError(f"-o {output} is a file: give the name of a folder")
    if not output.parent.is_dir():
        raise UsageError(f"-o {output}: there is no folder {output.parent}, create it first")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise UsageError(f"-o {output} cannot be written: choose another place")
    if (output / INDEX).exists():
        raise UsageError(f"-o {output} holds a pipeline: choose another place for the Dot")
    begun = any((output / name).exists() for name in (CHECKPOINT, f"{CHECKPOINT}.old"))
    if (output / CONFIG).exists() and not begun and not args.fresh:
        raise UsageError(f"-o {output} holds a model, but no checkpoint to go on from: --fresh replaces it")
    return output


def _dot_config(folder: Path, model: _Model) -> dict[str, Any]:
    """The config of a Dot that is there already."""
    if not (folder / CONFIG).is_file():
        raise UsageError(f"--dot {folder} has no {CONFIG}: give the folder that dot.save_pretrained(...) wrote")
    config = read_json(str(folder), CONFIG)
    if config.get("_class_name") != "MorseDot":
        raise UsageError(f"--dot {folder} holds a {config.get('_class_name')}, not a MorseDot")
    if config["base_class"] != type(model.network).__name__:
        raise UsageError(f"--dot {folder} is for a {config['base_class']}, not a {type(model.network).__name__}")
    return config
