"""What the commands that run a pipeline make of its options: size, type of numbers, threads."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from diffaccel.pipelines.bundled import NAMES, TEXT, UNCONDITIONAL

if TYPE_CHECKING:
    import torch

BUNDLED = (*NAMES, *UNCONDITIONAL, *TEXT)


def size_of(args: argparse.Namespace) -> dict[str, int]:
    """Height and width, those that were given."""
    return {name: value for name in ("height", "width") if (value := getattr(args, name)) is not None}


def dtype_of(args: argparse.Namespace, device: torch.device) -> torch.dtype:
    """The type asked for; else float32, or bfloat16 for large models on a GPU."""
    import torch

    large = device.type == "cuda" and args.model not in BUNDLED
    dtype: torch.dtype = getattr(torch, args.dtype or ("bfloat16" if large else "float32"))
    return dtype


def limit_threads(model: str, device: torch.device) -> None:
    """One thread for bundled models on a CPU, unless the user says otherwise."""
    import torch

    if model in BUNDLED and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # so small that a second thread mostly waits for the first
