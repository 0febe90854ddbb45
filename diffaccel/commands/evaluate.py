"""`diffaccel evaluate`: accelerations of a pipeline against the full run, or one folder of pictures against another."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.commands import (
    Answer,
    UsageError,
    check_json,
    check_writable,
    device_of,
    show_progress,
    silence_libraries,
)
from diffaccel.commands.env import environment
from diffaccel.commands.model import dtype_of, limit_threads, size_of
from diffaccel.commands.prompts import read_prompts
from diffaccel.commands.report import SHOWN, as_text, write_report
from diffaccel.pipelines import bundled
from diffaccel.pipelines.source import call_defaults, fingerprint, locate, read_json

if TYPE_CHECKING:
    import torch

    from diffaccel.evaluation.candidates import Candidate
    from diffaccel.evaluation.store import Store
    from diffaccel.evaluation.subject import Subject

OUTPUT = "diffaccel-evaluation"
METHOD = "taylorseer"


@dataclass(frozen=True)
class Plan:
    """What is going to be done, checked as far as it can be before weights are loaded."""

    source: str
    kind: type[Any]
    device: torch.device
    dtype: torch.dtype
    prompts: list[str]
    steps: int
    batch: int
    methods: list[Candidate]
    output: Path


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command.

    Raises:
        UsageError: what was asked for cannot be done; raised before anything is generated.
        NotHereError: weights of a metric's network are missing.
        OSError: the model cannot be loaded.
    """
    progress = show_progress(args)
    check_json(args)
    if args.html is not None:
        check_writable(Path(args.html), "--html")
    if args.images is not None:
        from diffaccel.commands import score

        return score.run(args)
    if progress:
        sys.stderr.write(f"loading diffusers and {args.model}\n")
    silence_libraries(progress)
    try:
        return _evaluate(args, progress)
    except (FileExistsError, ImportError, ValueError) as error:
        raise UsageError(str(error)) from error


def _evaluate(args: argparse.Namespace, progress: bool) -> Answer:
    from diffaccel.commands import tools as choose
    from diffaccel.evaluation.run import evaluate
    from diffaccel.evaluation.store import Store
    from diffaccel.evaluation.subject import Subject
    from diffaccel.pipelines import image

    names = choose.metric_names(args)
    plan = make_plan(args)
    tools = choose.tools(args, names, plan.device, progress)
    pipe = image.load(args.model, plan.dtype, plan.device)
    size = size_of(args)
    subject = Subject(
        pipe, plan.prompts, args.seed, plan.steps, image.call_arguments(pipe, plan.steps, args.guidance, **size)
    )
    pipe.set_progress_bar_config(disable=True)
    methods = [method.prepared(pipe) for method in plan.methods]
    request = describe(args, plan, subject)
    store = Store(plan.output, request, len(plan.prompts), plan.batch, args.fresh)
    extra = args.steps_baseline or ()
    field, found = evaluate(subject, methods, tools, store, extra, args.rounds, progress)
    data = {
        "schema": 1,
        "command": "diffaccel " + " ".join(sys.argv[1:]),
        "request": request,
        **choose.as_data(tools),
        **found,
        "environment": environment(),
    }
    saved = []
    if args.save_images:
        saved = [store.save_images(candidate, subject.prompts, subject.seeds) for candidate in field.candidates]
    return finish(args, plan, store, field.candidates, data, saved)


def finish(
    args: argparse.Namespace,
    plan: Plan,
    store: Store,
    candidates: list[Candidate],
    data: dict[str, Any],
    saved: list[Path],
) -> Answer:
    """Write the report's files, and say where they are."""
    from diffaccel.evaluation.store import gather
    from diffaccel.pipelines.image import to_pil

    count = min(SHOWN, store.rows)
    data["pictures"] = {"prompts": plan.prompts[:count], "names": [c.name for c in candidates], "files": None}
    pictures = {candidate.name: to_pil(gather(store, candidate, count)) for candidate in candidates}
    written = write_report(data, pictures, plan.output, args.html)
    lines = [f"wrote {path}" for path in (*written, *saved)]
    return Answer("\n".join([as_text(data), "", *lines]), data)


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan; ValueError or UsageError for whatever can be refused before weights are loaded."""
    from diffaccel.evaluation.candidates import accelerations
    from diffaccel.evaluation.store import check_folder, writable
    from diffaccel.pipelines import image

    texts = args.method or [METHOD]
    accelerations(texts, "", 1)  # for its errors: which preset they take is known once the model's class is
    source, output = locate(args.model), Path(args.output or OUTPUT)
    check_folder(output)
    if not writable(output):
        raise UsageError(f"-o {output} cannot be written: choose another place")
    is_bundled = args.model in bundled.NAMES
    prompts = read_prompts(args.prompts, args.model, args.num)
    device = device_of(args.device)
    kind = image.pipeline_class(read_json(source))
    image.check_arguments(kind, list(size_of(args)))
    steps = image.denoising_steps(kind, call_defaults(source), args.steps)
    for n in args.steps_baseline or ():
        if n >= steps:
            raise UsageError(f"--steps-baseline {n} is not fewer than the {steps} steps of the full run")
    limit_threads(args.model, device)
    batch = min(args.batch or (16 if is_bundled else 1), len(prompts))
    methods = accelerations(texts, kind.__name__, steps)
    return Plan(source, kind, device, dtype_of(args, device), prompts, steps, batch, methods, output)


def describe(args: argparse.Namespace, plan: Plan, subject: Subject) -> dict[str, Any]:
    """What was asked for: whatever changes the pictures of the full run."""
    return {
        "model": args.model,
        "weights": fingerprint(plan.source),
        "pipeline": plan.kind.__name__,
        "steps": plan.steps,
        "prompts": args.prompts or "bundled",
        "num": len(plan.prompts),
        "texts": plan.prompts,
        "seed": args.seed,
        "batch": plan.batch,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "device": str(plan.device),
        "arguments": subject.arguments,
        "versions": {name: version for name, version in environment().items() if name in ("torch", "diffusers")},
    }
