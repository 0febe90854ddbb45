"""Faster diffusion pipelines whose output stays faithful."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffaccel.methods import METHODS
from diffaccel.methods.block_cache import BlockCache
from diffaccel.methods.blockwise import Acs, Bac, Unified, Uniform
from diffaccel.methods.by_effect import Effect
from diffaccel.methods.configuration import load_config, save_config
from diffaccel.methods.dkv import Dkv
from diffaccel.methods.fast_dllm import FastDllm
from diffaccel.methods.first_block import FirstBlock
from diffaccel.methods.fitted import Fitted
from diffaccel.methods.hyca import HyCa
from diffaccel.methods.innovation import Innovation
from diffaccel.methods.morse import Morse
from diffaccel.methods.sparsed import SparseD
from diffaccel.methods.speeds import SPEEDS
from diffaccel.methods.ssd import Ssd
from diffaccel.methods.taylorseer import TaylorSeer
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.acceleration import Acceleration, accelerate, accelerate_pipeline

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "SPEEDS",
    "Acceleration",
    "Acs",
    "Bac",
    "BlockCache",
    "Dkv",
    "Effect",
    "FastDllm",
    "FirstBlock",
    "Fitted",
    "HyCa",
    "Innovation",
    "Morse",
    "Plan",
    "SparseD",
    "Ssd",
    "TaylorSeer",
    "Unified",
    "Uniform",
    "accelerate",
    "accelerate_pipeline",
    "load_config",
    "save_config",
]


def __getattr__(name: str) -> Any:
    # torch is imported only when something is accelerated, so that the command line answers at once.
    if name in ("Acceleration", "accelerate", "accelerate_pipeline"):
        from diffaccel import acceleration

        return getattr(acceleration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
