"""Values the command line takes: choices, and checks that say what is wrong. Imports no torch."""

from __future__ import annotations

import argparse

from diffaccel.methods import names
from diffaccel.pipelines.bundled import NAMES

LEVELS = ("sublayer", "block", "model", "deep")  # as in diffaccel.sites, which imports torch
RESIZES = ("clean", "torchmetrics", "tf1", "none")  # as in diffaccel.metrics.resize
DTYPES = ("float32", "bfloat16", "float16")
MODEL_HELP = f"{', '.join(NAMES)} (bundled), a folder with a diffusers pipeline, or a hub id"

TEXT_METHODS, PICTURE_METHODS = tuple(names(for_text=True)), tuple(names(for_text=False))


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _at_least(1, text)


def scale(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return value


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return value
