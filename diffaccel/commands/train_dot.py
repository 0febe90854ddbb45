"""`diffaccel train-dot`: train the small network that morse runs between the steps of the large one."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from diffaccel.commands import Answer, UsageError, check_json, device_of, show_progress, silence_libraries
from diffaccel.commands.env import environment
from diffaccel.commands.model import limit_threads, size_of
from diffaccel.commands.text import render, table
from diffaccel.report import format_bytes

if TYPE_CHECKING:
    from diffaccel.commands.dot_job import Job
    from diffaccel.morse.dot import MorseDot

LOG, WEIGHTS = "training.json", "diffusion_pytorch_model.safetensors"


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command.

    Raises:
        UsageError: what was asked for cannot be done; raised before weights are loaded, unless it depends on them.
        OSError: the model or a picture cannot be loaded.
    """
    progress = show_progress(args)
    check_json(args)
    silence_libraries(progress)
    from diffaccel.commands.dot_job import Job

    try:
        return _train(args, Job.of(args), progress)
    except (ImportError, NotADirectoryError, ValueError) as error:
        raise UsageError(str(error)) from error


def _train(args: argparse.Namespace, job: Job, progress: bool) -> Answer:
    import torch

    from diffaccel.denoisers import denoisers
    from diffaccel.morse.dot import MorseDot
    from diffaccel.morse.train import train_dot
    from diffaccel.pipelines import image

    device, recipe = device_of(args.device), job.recipe
    limit_threads(args.model, device)
    dtype = getattr(torch, args.dtype) if args.dtype else torch.float32
    pipe = image.load(args.model, dtype, device)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = job.scheduler.from_config(pipe.scheduler.config)
    network = next(iter(denoisers(pipe).values()))
    torch.manual_seed(recipe.seed)  # of the new layers
    dot = MorseDot.from_pretrained(args.dot) if args.dot else MorseDot.of(network, **job.shape)
    job.output.mkdir(exist_ok=True)
    start = time.perf_counter()
    dot = train_dot(
        pipe, job.dataset, dot, output=job.output, call=size_of(args), resume=not args.fresh, progress=progress,
        **recipe.as_dict(),
    )  # fmt: skip
    data = {
        "model": args.model,
        "data": args.data,
        "pictures": len(job.dataset),  # type: ignore[arg-type]
        "dot": _described(dot, network),
        "recipe": recipe.as_dict(),
        "scheduler": type(pipe.scheduler).__name__,
        "seconds": time.perf_counter() - start,
        "history": json.loads((job.output / LOG).read_text())["history"],
        "output": str(job.output),
        "bytes": (job.output / WEIGHTS).stat().st_size,
        "environment": environment(),
    }
    return Answer(as_text(data), data)


def _described(dot: MorseDot, network: Any) -> dict[str, Any]:
    """What a Dot is, and how large it is beside Dash."""
    names = ("kind", "m", "widths", "rank", "blocks", "residual_space", "guided", "base")
    sizes = {"parameters": _count(dot), "dash_parameters": _count(network)}
    return {name: dot.config[name] for name in names} | sizes


def _count(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def as_text(data: dict[str, Any]) -> str:
    """The answer for people."""
    dot, recipe, last = data["dot"], data["recipe"], data["history"][-1]
    share = dot["parameters"] / dot["dash_parameters"]
    head = (
        f"{data['model']}: a Dot of kind {dot['kind']}, m = {dot['m']}, {dot['parameters']:,} parameters of its own, "
        f"{share:.1%} of Dash's {dot['dash_parameters']:,}"
    )
    trained = (
        f"{last['iteration']} iterations of {recipe['batch']}, {recipe['pairs']} pairs under {data['scheduler']}, "
        f"{data['seconds']:.1f} s now"
    )
    gaps = table("gap, share of all time", "explained")
    for gap, explained in last["by_gap"].items():
        gaps.add_row(gap, f"{explained:.3f}")
    power = f"explained of Dash's change, lately: {last['explained']:.3f} (0: as good as none, 1: all)"
    tail = f"wrote {data['output']}, {format_bytes(data['bytes'])} of weights"
    return f"{head}\n{trained}\n\n{power}\n{render(gaps)}\n\n{tail}"
