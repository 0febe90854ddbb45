"""`diffaccel tune`: choose the acceleration that reaches a speed-up or a fidelity, and keep the choice."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.commands import Answer, UsageError, check_json, device_of, show_progress, silence_libraries
from diffaccel.commands.model import dtype_of, limit_threads, size_of
from diffaccel.commands.prompts import read_prompts
from diffaccel.commands.text import render, table
from diffaccel.methods.auto import Auto
from diffaccel.pipelines import bundled
from diffaccel.pipelines.source import call_defaults, locate, read_json

if TYPE_CHECKING:
    from diffaccel.auto.choice import Choice


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command.

    Raises:
        UsageError: what was asked for cannot be done; raised before weights are loaded, unless it depends on them.
        OSError: the model cannot be loaded.
    """
    progress = show_progress(args)
    check_json(args)
    try:
        source = locate(args.model)
        auto = _asked(args, progress)
        silence_libraries(progress)
        from diffaccel.auto import files
        from diffaccel.auto.find import make
        from diffaccel.auto.request import Request, check_target
        from diffaccel.pipelines import image

        kind = image.pipeline_class(read_json(source))
        image.check_arguments(kind, list(size_of(args)))
        steps = image.denoising_steps(kind, call_defaults(source), args.steps)
        target = check_target(auto, steps)
        output = _output(args, source, files.NAME.format(target=target.slug, steps=steps))
        device = device_of(args.device)
        limit_threads(args.model, device)
        pipe = image.load(args.model, dtype_of(args, device), device)
        choice = make(pipe, auto, Request.of(pipe, auto), output)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    data = {"model": args.model, **choice.as_dict(), "output": str(output)}
    return Answer(f"{as_text(choice)}\n\n{choice}\nwrote {output}", data)


def _asked(args: argparse.Namespace, progress: bool) -> Auto:
    """The method that the options describe."""
    # Bundled and class-conditional models bring their own.
    prompts = None if args.prompts in (None, "bundled") else read_prompts(args.prompts, args.model, None)
    call: dict[str, Any] = {"guidance": args.guidance, **size_of(args)}
    return Auto(
        speedup=args.speedup,
        psnr=args.psnr,
        prompts=prompts,
        steps=args.steps,
        call={name: value for name, value in call.items() if value is not None},
        levels=args.level,
        pictures=args.pictures,
        batch=args.batch,
        rounds=args.rounds,
        seed=args.seed,
        progress=progress,
    )


def _output(args: argparse.Namespace, source: str, name: str) -> Path:
    from diffaccel.auto.files import check_writable

    if args.output is None and (args.model in bundled.NAMES or not Path(source).is_dir()):
        raise UsageError(f"-o is needed, since {args.model} is no folder of yours: name the file to write")
    return check_writable(Path(source, name) if args.output is None else Path(args.output))


def as_text(choice: Choice) -> str:
    """What was tried, for people: fastest first."""
    found = table("tried", "computed", "speed-up", "PSNR, dB", "95% interval", "worst", "")
    for entry in choice.tried:
        psnr, measured = entry["psnr"], entry["measured_speedup"]
        found.add_row(
            entry["method"],
            str(entry["computed"]),
            f"{measured:.2f}x" if measured else f"about {entry['expected_speedup']:.2f}x",
            f"{psnr['mean']:.1f}",
            f"{psnr['low']:.1f} to {psnr['high']:.1f}",
            f"{psnr['worst']:.1f}",
            "chosen" if entry["method"] == choice.name else "",
        )
    plain = choice.plain
    found.add_row(
        f"{plain.steps} plain steps",
        str(plain.steps),
        f"{plain.speed.median:.2f}x",
        f"{plain.quality.mean:.1f}",
        f"{plain.quality.low:.1f} to {plain.quality.high:.1f}",
        f"{plain.quality.worst:.1f}",
        "",
    )
    return render(found)
