"""`diffaccel evaluate --images DIR --reference DIR`: pictures that exist, without any pipeline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffaccel.commands import Answer, UsageError, device_of, show_progress, silence_libraries
from diffaccel.commands.env import environment
from diffaccel.commands.report import SHOWN, as_text, write_report

CHUNK = 64
GENERATION = ("method", "steps", "steps_baseline", "num", "prompts", "guidance", "height", "width", "dtype", "batch")


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command.

    Raises:
        UsageError: the folders cannot be compared, or options that belong to generating were given.
        NotHereError: weights of a metric's network are missing.
        OSError: a picture cannot be read.
    """
    for name in GENERATION:
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} belongs to generating, --images generates nothing: drop one")
    if args.reference is None:
        raise UsageError("--images needs --reference: the folder, or the statistics file, it is compared with")
    progress = show_progress(args)
    silence_libraries(progress)
    try:
        return _score(args, progress)
    except (ImportError, NotADirectoryError, ValueError) as error:
        raise UsageError(str(error)) from error


def _score(args: argparse.Namespace, progress: bool) -> Answer:
    from tqdm.auto import tqdm

    from diffaccel.commands import tools as choose
    from diffaccel.evaluation.measure import distributions, measure, picture_estimate
    from diffaccel.evaluation.tools import PAIRS, is_statistics
    from diffaccel.metrics import folders

    names = choose.metric_names(args)
    images = folders.find(args.images)
    pictures = images.pictures
    partners: tuple[folders.Picture, ...] | None = None
    missing: tuple[str, ...] = ()
    if paired := [name for name in names if name in PAIRS]:
        if is_statistics(Path(args.reference)) or args.reference in ("bundled", "full"):
            raise UsageError(f"--metrics {paired[0]} compares pictures: give --reference a folder of them")
        pictures, partners, missing = folders.pair(images, folders.find(args.reference), args.allow_missing)
    prompts = images.prompts
    if prompts is None and (needing := {"clip", "caption"} & set(names)):
        raise UsageError(f"--metrics {min(needing)} needs a manifest.json with a prompt for every picture")
    tools = choose.tools(args, names, device_of(args.device), progress)
    with tqdm(total=len(pictures), desc="measuring", unit="picture", disable=not progress) as bar:
        measured = measure(tools, chunks(pictures, partners), bar)
    numbers = {name: picture_estimate(name, values) for name, values in measured.values.items()}
    numbers |= distributions(tools, measured, None)
    data = {
        "schema": 1,
        "command": "diffaccel " + " ".join(sys.argv[1:]),
        "request": {"images": args.images, "reference": args.reference, "num": len(pictures)},
        **choose.as_data(tools),
        "metrics": [metric.as_dict() for metric in tools.metrics(folder=True)],
        "candidates": [candidate(args.images, numbers)],
        "gains": [],
        "warnings": [*tools.warnings(len(pictures)), *_left_out(missing)],
        "environment": environment(),
    }
    data["reference"] = data["reference"] or {"name": args.reference, "n": len(pictures)}
    return finish(args, data, pictures, partners)


def chunks(pictures: Sequence[Any], partners: Sequence[Any] | None) -> Iterator[Any]:
    """Pictures of both folders and the prompts, some at a time; pairs must be of one size."""
    from diffaccel.evaluation.subject import Drawn
    from diffaccel.metrics.folders import read

    for start in range(0, len(pictures), CHUNK):
        part = pictures[start : start + CHUNK]
        drawn, other = read([picture.file for picture in part]), None
        if partners is not None:
            reference = read([picture.file for picture in partners[start : start + CHUNK]])
            if reference.shape != drawn.shape:
                (height, width), (other_height, other_width) = drawn.shape[2:], reference.shape[2:]
                raise ValueError(
                    f"{part[0].file} has {width}x{height} pixels, its partner {partners[start].file} "
                    f"{other_width}x{other_height}: pictures that are compared need one size"
                )
            other = Drawn(reference, reference)
        prompts = [picture.prompt for picture in part]
        yield Drawn(drawn, drawn), other, None if None in prompts else prompts


def candidate(name: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """The only candidate of the result."""
    unknown = dict.fromkeys(("method", "steps", "computed", "bound", "time", "cache_bytes"))
    return {"name": name, "kind": "images", **unknown, "equal": [], "metrics": numbers}


def finish(
    args: argparse.Namespace, data: dict[str, Any], pictures: Sequence[Any], partners: Sequence[Any] | None
) -> Answer:
    """Write the report where that was asked for, with the first pictures of both folders."""
    from diffaccel.metrics.folders import read
    from diffaccel.pipelines.image import to_pil

    shown = {args.images: pictures[:SHOWN]}
    if partners is not None:
        shown[data["reference"]["name"]] = partners[:SHOWN]
    captions = [picture.prompt or picture.name for picture in pictures[:SHOWN]]
    data["pictures"] = {"prompts": captions, "names": list(shown), "files": None}
    drawn = {name: to_pil(read([one.file for one in some])) for name, some in shown.items()}
    folder = Path(args.output) if args.output else None
    written = write_report(data, drawn, folder, args.html)
    return Answer("\n".join([as_text(data), *(f"wrote {path}" for path in written)]), data)


def _left_out(missing: Sequence[str]) -> list[str]:
    return [f"{len(missing)} pictures without a partner were left out"] if missing else []
