"""`diffaccel statistics`: statistics of a folder of pictures, as a reference for `diffaccel evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffaccel.commands import (
    Answer,
    UsageError,
    check_json,
    check_writable,
    device_of,
    show_progress,
    silence_libraries,
)


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command.

    Raises:
        UsageError: there are no pictures, or the file cannot be written.
        NotHereError: weights of the extractor are missing.
        OSError: a picture or the weights cannot be read.
    """
    output = Path(args.output)
    check_writable(output, "-o")
    if output.suffix != ".npz":
        raise UsageError(f"-o {output}: statistics are kept as .npz, name it {output.with_suffix('.npz')}")
    check_json(args)
    progress = show_progress(args)
    silence_libraries(progress)
    from diffaccel.commands import tools
    from diffaccel.metrics import folders, statistics

    try:
        files = folders.find(args.images).files
        extractor = tools.load(args, args.extractor or "inception", device_of(args.device))
        found = statistics.of(tools.features_of(files, extractor, progress), extractor.identity)
    except (NotADirectoryError, ValueError) as error:
        raise UsageError(str(error)) from error
    found.save(output)
    identity = extractor.identity
    text = f"{len(files)} pictures, {identity.dimension} features of {identity.name}, resize {identity.resize}"
    return Answer(f"{text}\nwrote {output}", {"images": args.images, "n": len(files), "extractor": identity.as_dict()})
