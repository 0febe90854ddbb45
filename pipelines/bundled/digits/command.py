"""What the commands that train a pipeline have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging


def training_parser(description: str | None, output: str, minutes: float) -> argparse.ArgumentParser:
    """A command line with a folder to write into (`output` says what), minutes, and threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help=output)
    parser.add_argument("--minutes", type=float, default=minutes, help="wall time of the denoiser's training")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser


def training_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, checked; threads are set, and diffusers' own progress bars off."""
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error("--minutes must be positive")
    torch.set_num_threads(arguments.threads)
    diffusers_logging.disable_progress_bar()
    return arguments
