"""`diffaccel generate-text`: write texts plainly, accelerated, or both ways to compare them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from diffaccel.commands import Answer, UsageError, check_json, device_of, show_progress, silence_libraries
from diffaccel.commands.env import environment
from diffaccel.commands.method import text_method_of
from diffaccel.commands.model import dtype_of, limit_threads
from diffaccel.commands.text_model import PIPELINE, find
from diffaccel.commands.text_options import CALL
from diffaccel.methods.spelling import label, parse_method

if TYPE_CHECKING:
    from diffaccel.dlm.decoding import TextMethod
    from diffaccel.pipelines.text import TextDiffusionOutput, TextDiffusionPipeline

DEFAULT_METHOD = "dkv"  # of --compare
ROUNDS = 5


@dataclass(frozen=True)
class TextRequest:
    """What is written, and how; `arguments` are those of the pipeline's call that are not left to it."""

    model: str
    prompts: list[str]
    seed: int
    gen_length: int
    steps: int
    dtype: str
    device: str
    arguments: dict[str, Any]

    @property
    def title(self) -> str:
        """The request in one line."""
        n = len(self.prompts)
        what = f"{n} text{'s' * (n > 1)} of {self.gen_length} tokens"
        return f"{self.model}: {what}, {self.steps} steps, seed {self.seed}, {self.dtype} on {self.device}"


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command.

    Raises:
        UsageError: what was asked for cannot be done; raised before weights are loaded.
        OSError: the model cannot be loaded.
        ValueError: a checkpoint that cannot decode, or a method that it does not allow.
    """
    method = _check(args)
    progress = show_progress(args)
    silence_libraries(progress)
    model = find(args.model)
    if progress:
        sys.stderr.write(f"loading torch and {args.model}\n")
    device = device_of(args.device)
    arguments = {CALL[name]: value for name in CALL if (value := getattr(args, name)) is not None}
    decoding = model.decoding(method, arguments)
    dtype = dtype_of(args, device)
    limit_threads(args.model, device)
    pipe = model.load(dtype, device)
    request = TextRequest(
        model=args.model,
        prompts=args.prompts,
        seed=args.seed,
        gen_length=decoding.generated,
        steps=decoding.steps,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        arguments=arguments,
    )
    stream = progress if args.stream is None else args.stream
    pipe.set_progress_bar_config(disable=not progress or stream or args.compare, desc="decoding", leave=False)
    if args.compare:
        assert method is not None
        return _both(pipe, request, method, args, stream, progress)
    return _one(pipe, request, method, stream)


def _check(args: argparse.Namespace) -> TextMethod | None:
    """The method; UsageError for whatever can be refused before anything is imported."""
    check_json(args)
    if args.rounds is not None and not args.compare:
        raise UsageError("--rounds belongs to --compare: add it")
    if args.stream and args.quiet:
        raise UsageError("--stream shows what --quiet leaves out: drop one")
    return text_method_of(args, PIPELINE, DEFAULT_METHOD if args.compare else None)


def _write(pipe: TextDiffusionPipeline, request: TextRequest, stream: bool) -> TextDiffusionOutput:
    """All texts at once. Each has a generator of its own, so it depends on no other."""
    import torch

    how: dict[str, Any] = request.arguments
    seeds = [torch.Generator().manual_seed(request.seed) for _ in request.prompts]
    if not stream:
        written: TextDiffusionOutput = pipe(request.prompts, generator=seeds, **how)
        return written
    from diffaccel.commands.streaming import shown

    with shown(request.prompts) as show:
        for written in pipe.stream(request.prompts, generator=seeds, **how):
            show(written.texts)
    return written


def _one(pipe: TextDiffusionPipeline, request: TextRequest, method: TextMethod | None, stream: bool) -> Answer:
    """Write once, and say what it took."""
    from diffaccel.acceleration import accelerate_pipeline
    from diffaccel.commands.text_compare import output_data, quoted

    if method is not None:
        accelerate_pipeline(pipe, method)
    output = _write(pipe, request, stream)
    blocks = [f"{quoted(prompt)}\n{text}" for prompt, text in zip(request.prompts, output.texts, strict=True)]
    text = "\n\n".join([request.title, *blocks, str(output.report)])
    return Answer(text, asdict(request) | output_data(output) | {"environment": environment()})


def _both(
    pipe: TextDiffusionPipeline,
    request: TextRequest,
    method: TextMethod,
    args: argparse.Namespace,
    stream: bool,
    progress: bool,
) -> Answer:
    """Write both ways; only the first, untimed runs are shown."""
    from diffaccel.commands import text_compare

    name = label(method, parse_method(args.method)[1] if args.method else {})
    first, again = (partial(_write, pipe, request, shown) for shown in (stream, False))
    result = text_compare.compare(pipe, method, name, first, again, args.rounds or ROUNDS, progress)
    chosen = f"{method}" + ("" if args.method else ", the default of --compare")
    text = "\n\n".join([f"{request.title}\n{chosen}", text_compare.as_text(result, request.prompts)])
    data = asdict(request) | {"method": str(method)} | text_compare.as_data(result)
    return Answer(text, data | {"environment": environment()})
