"""`diffaccel env`: the versions and the machine a result was made with."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

import diffaccel
from diffaccel.commands import Answer

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "huggingface-hub", "numpy")


def environment() -> dict[str, str]:
    """Versions of what results depend on, and the machine."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "diffaccel": diffaccel.__version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "gpu": ", ".join(devices) or "none",
    }


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command."""
    found = environment()
    width = max(map(len, found))
    return Answer("\n".join(f"{name:<{width}}  {value}" for name, value in found.items()), found)
