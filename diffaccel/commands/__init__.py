"""The commands of the command line, one a file; this one holds what they share and imports no model code."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class UsageError(Exception):
    """The command line cannot be followed as it was given. Raised before anything is loaded."""


class NotHereError(Exception):
    """Weights that a metric needs are not on this machine, and nothing was downloaded."""


@dataclass(frozen=True)
class Answer:
    """What a command has found out: as text for people, as data for programs."""

    text: str
    data: dict[str, Any]


def check_writable(path: Path, option: str) -> None:
    """Raise UsageError unless a file can be written there."""
    folder = path.parent
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: give the name of a file")
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {folder}, create it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"{option} {path} cannot be written: choose another place")


def check_json(args: argparse.Namespace) -> None:
    """Raise UsageError unless the file that --json names, if it names one, can be written."""
    if args.json not in (None, "-"):
        check_writable(Path(args.json), "--json")


def write_json(data: dict[str, Any], path: str) -> None:
    """Write to a file, or to standard output for `-`."""
    text = json.dumps(data, indent=1, allow_nan=False)
    if path == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(path).write_text(text + "\n")


def show_progress(args: argparse.Namespace) -> bool:
    """Whether progress may be shown: on a terminal, unless asked for silence or for JSON on standard output."""
    return sys.stderr.isatty() and not args.quiet and args.json != "-"


def silence_libraries(progress: bool) -> None:
    """Turn down what libraries say on standard error; errors reach the user as exceptions.

    Their own variables (TRANSFORMERS_VERBOSITY and the like) and Python's -W still turn it up.
    """
    from huggingface_hub import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    # Only now: importing diffusers imports parts of transformers, which speak up at once.
    from diffusers.utils import logging as diffusers_logging

    if "DIFFUSERS_VERBOSITY" not in os.environ:
        diffusers_logging.set_verbosity(logging.CRITICAL)
    if not progress:
        diffusers_logging.disable_progress_bar()
        disable_progress_bars()
        if "HF_HUB_VERBOSITY" not in os.environ:
            hub_logging.set_verbosity_error()


def device_of(name: str | None) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        UsageError: no device of that name is here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is not known: give cpu, cuda, or cuda:1 for the second GPU") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise UsageError("--device meta computes nothing: choose cpu or cuda")
    return device
