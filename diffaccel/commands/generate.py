"""`diffaccel generate`: draw pictures plainly, accelerated, or both ways to compare them."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

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
from diffaccel.commands.method import method_of, outcome, summary
from diffaccel.commands.model import dtype_of, limit_threads, size_of
from diffaccel.methods import Method, written_out
from diffaccel.pipelines.bundled import NAMES as BUNDLED
from diffaccel.pipelines.bundled import SINGLE
from diffaccel.pipelines.bundled.digits.captions import Scene
from diffaccel.pipelines.source import call_defaults, locate, read_json

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("diffaccel")

DEFAULT_METHOD = "taylorseer"  # of --compare


@dataclass(frozen=True)
class Request:
    """What is drawn, and how; `arguments` are those of the pipeline's call, its defaults for calls included."""

    model: str
    pipeline: str
    prompts: list[str]
    seed: int
    steps: int
    batch: int
    dtype: str
    device: str
    arguments: dict[str, Any]

    def title(self, images: Tensor) -> str:
        """The request in one line."""
        n, _, height, width = images.shape
        what = f"{n} picture{'s' * (n > 1)} of {width}x{height}"
        return f"{self.model}: {what}, {self.steps} steps, seed {self.seed}, {self.dtype} on {self.device}"


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command.

    Raises:
        UsageError: what was asked for cannot be done; raised before weights are loaded.
        OSError: the model cannot be loaded.
    """
    source, outputs = _check(args)
    progress = show_progress(args)
    if progress:
        sys.stderr.write(f"loading diffusers and {args.model}\n")
    silence_libraries(progress)
    index = read_json(source)
    device = device_of(args.device)
    _warn_of_strange_prompts(args)

    from diffaccel.pipelines import image

    size = size_of(args)
    try:
        kind = image.pipeline_class(index)
        image.check_arguments(kind, list(size))
    except ValueError as error:
        raise UsageError(str(error)) from error
    method = method_of(args, kind.__name__, DEFAULT_METHOD if args.compare else None)
    dtype = dtype_of(args, device)
    limit_threads(args.model, device)
    pipe = image.load(args.model, dtype, device)
    request = Request(
        model=args.model,
        pipeline=kind.__name__,
        prompts=args.prompts,
        seed=args.seed,
        steps=image.denoising_steps(kind, call_defaults(source), args.steps),
        # A bundled pipeline is so small that all pictures go in one call.
        batch=args.batch or (len(args.prompts) if args.model in BUNDLED else 1),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        arguments=image.call_arguments(pipe, args.steps, args.guidance, **size),
    )
    rounds = args.rounds or (9 if args.model in BUNDLED else 1)
    pipe.set_progress_bar_config(disable=not progress or (args.compare and rounds > 1), desc="denoising", leave=False)
    if args.compare:
        assert method is not None
        return _both(pipe, request, method, rounds, outputs[0], progress, stated=args.method is not None)
    return _one(pipe, request, method, outputs)


def _check(args: argparse.Namespace) -> tuple[str, list[Path]]:
    """Where the model is, and the files to write; UsageError for whatever can be refused before models are imported."""
    outputs = output_files(args)
    # For its errors: which preset the method takes is known once the model's class is.
    method_of(args, "", DEFAULT_METHOD if args.compare else None)
    if args.rounds is not None and not args.compare:
        raise UsageError("--rounds belongs to --compare: add it")
    try:
        return locate(args.model), outputs
    except ValueError as error:
        raise UsageError(str(error)) from error


def _draw(pipe: Any, request: Request, steps: int) -> Tensor:
    from diffaccel.pipelines import image

    arguments = request.arguments | {"num_inference_steps": steps}
    return image.pictures(pipe, request.prompts, request.seed, batch=request.batch, **arguments)


def _one(pipe: Any, request: Request, method: Method | None, outputs: list[Path]) -> Answer:
    """Draw once, and save a file a picture."""
    from diffaccel.acceleration import accelerate_pipeline
    from diffaccel.pipelines.image import to_pil

    if method is not None:
        accelerate_pipeline(pipe, method)
    start = time.perf_counter()
    images = _draw(pipe, request, request.steps)
    seconds = time.perf_counter() - start
    for picture, output in zip(to_pil(images), outputs, strict=True):
        picture.save(output)
    found = {} if method is None else outcome(pipe)
    lines = [f"{request.title(images)}, {seconds:.2f} s in a first run"]
    lines += [] if method is None else [summary(found)]
    lines += [f"wrote {output}  {prompt}" for output, prompt in zip(outputs, request.prompts, strict=True)]
    height, width = images.shape[-2:]
    data = asdict(request) | {"height": height, "width": width, "seconds": seconds, "outputs": list(map(str, outputs))}
    return Answer("\n".join(lines), data | found | {"environment": environment()})


def _both(
    pipe: Any, request: Request, method: Method, rounds: int, output: Path, progress: bool, stated: bool
) -> Answer:
    """Draw both ways, and save them side by side; `stated` says whether the user chose the method."""
    from diffaccel.commands import compare

    result = compare.compare(pipe, method, partial(_draw, pipe, request), rounds, request.steps, progress)
    title = request.title(result.baseline)
    compare.save_sheet(result, request.prompts, title, output)
    chosen = written_out(method) + ("" if stated else ", the default of --compare")
    text = "\n".join([title, chosen, "", compare.as_text(result, request.prompts), "", f"wrote {output}"])
    height, width = result.baseline.shape[-2:]
    data = asdict(request) | {"height": height, "width": width, "outputs": [str(output)]}
    return Answer(text, data | compare.as_data(result) | {"environment": environment()})


def output_files(args: argparse.Namespace) -> list[Path]:
    """The pictures to write: one sheet, or one a prompt, numbered if there are several.

    Raises:
        UsageError: one cannot be written, the file for JSON included.
    """
    output = Path(args.output or ("compare.png" if args.compare else "picture.png"))
    outputs = [output]
    if not args.compare and len(args.prompts) > 1:
        outputs = [output.with_stem(f"{output.stem}-{i}") for i in range(1, len(args.prompts) + 1)]
    for path in outputs:
        check_writable(path, "-o")
    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:
        raise UsageError(f"-o {output}: Pillow writes no files of this kind, name it {output.with_suffix('.png')}")
    check_json(args)
    return outputs


def _warn_of_strange_prompts(args: argparse.Namespace) -> None:
    """The bundled pipelines know captions of one kind only, and draw something for any other prompt, too."""
    for prompt in args.prompts if args.model in BUNDLED else ():
        if args.model in SINGLE and prompt.isdecimal():  # the number of a class
            continue
        try:
            Scene.parse(prompt)
        except ValueError as error:
            logger.warning("%s was not trained on prompts like this: %s", args.model, error)
