"""Morse: a large network, Dash, on a few steps, and a small trained one, Dot, on the steps between.

Dot is told where Dash was asked last, what it said there and where the sample is now, and predicts how far Dash's
estimate has moved. Running it costs a fraction of Dash, so that at the same latency a sampler makes more steps.

Chao Li, Jiawei Fan, Anbang Yao, "Morse: Dual-Sampling for Lossless Acceleration of Diffusion Models", ICML 2025. No
code of the authors is public: what the paper leaves open is decided here, and said where it is.

Step orders and budgets need no torch; all else is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffaccel.morse.budget import bound, dash_index, exchange, latency_ratio, lsd, split, step_order

if TYPE_CHECKING:
    from diffaccel.morse.clean import clean_samples
    from diffaccel.morse.coordinates import Coordinates
    from diffaccel.morse.dataset import PictureFolder
    from diffaccel.morse.dot import MorseDot
    from diffaccel.morse.pairs import Pair
    from diffaccel.morse.power import Power
    from diffaccel.morse.ratio import Ratio, measure_n
    from diffaccel.morse.recipe import DotRecipe
    from diffaccel.morse.renders import BundledRenders
    from diffaccel.morse.report import MorseReport
    from diffaccel.morse.train import train_dot

_LATER = {
    "BundledRenders": "renders",
    "Coordinates": "coordinates",
    "DotRecipe": "recipe",
    "MorseDot": "dot",
    "MorseReport": "report",
    "Pair": "pairs",
    "PictureFolder": "dataset",
    "Power": "power",
    "Ratio": "ratio",
    "clean_samples": "clean",
    "measure_n": "ratio",
    "train_dot": "train",
}

__all__ = [
    "BundledRenders",
    "Coordinates",
    "DotRecipe",
    "MorseDot",
    "MorseReport",
    "Pair",
    "PictureFolder",
    "Power",
    "Ratio",
    "bound",
    "clean_samples",
    "dash_index",
    "exchange",
    "latency_ratio",
    "lsd",
    "measure_n",
    "split",
    "step_order",
    "train_dot",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
