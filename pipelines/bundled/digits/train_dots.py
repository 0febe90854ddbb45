"""Train a bundled Dot: ``python -m diffaccel.pipelines.bundled.digits.train_dots NAME --output DIR``.

A Dot is one of ``DOTS``: a pipeline, a network, and where its pairs come from. The training is checkpointed and goes on
where it stopped; DIR/NAME is then what ``MorseDot.from_pretrained`` loads.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch

from diffaccel.morse.dot import MorseDot
from diffaccel.morse.probe import only_network
from diffaccel.morse.renders import BundledRenders
from diffaccel.morse.train import train_dot
from diffaccel.pipelines import bundled

PLANS = ((2, 2), (2, 4), (3, 3), (3, 6), (4, 4), (4, 8), (6, 6), (6, 12), (8, 8))
"""Dash and Dot steps that are trained for: one or two Dot steps to a Dash step, on 4 to 18 steps."""


@dataclass(frozen=True)
class Bundled:
    """One Dot to train.

    Attributes:
        pipeline: a bundled one.
        network: arguments of ``MorseDot.of``.
        pairs: see :func:`diffaccel.morse.train_dot`.
        scheduler: class of diffusers, in place of the pipeline's own, with its settings.
        settings: of the training, beside ``TOY``.
        begin: the Dot it continues from; a new one if "".
    """

    pipeline: str
    network: Mapping[str, Any]
    pairs: str
    scheduler: tuple[str, Mapping[str, Any]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    begin: str = ""


TOY: Mapping[str, Any] = MappingProxyType(
    {
        "iterations": 800,
        "batch": 64,
        "learning_rate": 2e-3,
        "ema": 0.99,
        "warmup": 50,
        "checkpoint_every": 100,
        "plans": PLANS,
    }
)
"""Settings for networks of this size, in place of those for large ones."""
Solver = tuple[str, Mapping[str, Any]]
DDIM: Solver = ("DDIMScheduler", {"clip_sample": False})
DPM: Solver = ("DPMSolverMultistepScheduler", {})
FLOW_DPM: Solver = ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True})

_DDPM_SHARED = {"m": 2, "widths": (16, 32), "rank": 16}
_DDPM_OWN = {"kind": "independent", "m": 1, "widths": (16,), "body_config": {"block_out_channels": (32, 48, 64)}}
_SD_SHARED = {"m": 1, "widths": (16,), "rank": 16, "guided": True}
_SD_OWN = {
    "kind": "independent",
    "m": 0,
    "guided": True,
    "body_config": {"block_out_channels": (16, 48, 48), "attention_head_dim": 2},
}
_FLUX_COARSE = {"m": 1, "widths": (64,), "rank": 16, "blocks": (0, 5)}
_FLUX_DEEP = {"m": 0, "widths": (64,), "rank": 16, "blocks": (0, 2)}
_HALF = {"batch": 32}
_EVEN = {"loss_norm": "per_bin"}

DOTS: Mapping[str, Bundled] = MappingProxyType(
    {
        "ddpm-shared-uniform": Bundled("ddpm-digits", _DDPM_SHARED, "uniform", DDIM),
        "ddpm-own-uniform": Bundled("ddpm-digits", _DDPM_OWN, "uniform", DDIM),
        "ddpm-own-plan": Bundled("ddpm-digits", _DDPM_OWN, "plan", DDIM),
        "ddpm-own-run": Bundled("ddpm-digits", _DDPM_OWN, "on-policy", DDIM),
        "ddpm-own-run-dpm": Bundled("ddpm-digits", _DDPM_OWN, "on-policy", DPM),
        "ddpm-own-even": Bundled("ddpm-digits", _DDPM_OWN, "on-policy", DDIM, _EVEN, "ddpm-own-uniform"),
        "ddpm-own-even-dpm": Bundled("ddpm-digits", _DDPM_OWN, "on-policy", DPM, _EVEN, "ddpm-own-uniform"),
        "ddpm-own-line": Bundled("ddpm-digits", {**_DDPM_OWN, "base": "taylor"}, "on-policy", DDIM, _EVEN),
        "sd-shared-uniform": Bundled("sd-digits", _SD_SHARED, "uniform"),
        "sd-own-uniform": Bundled("sd-digits", _SD_OWN, "uniform"),
        "sd-own-run": Bundled("sd-digits", _SD_OWN, "on-policy"),
        "sd-own-even": Bundled("sd-digits", _SD_OWN, "on-policy", None, _EVEN, "sd-own-uniform"),
        "sd-own-even-dpm": Bundled("sd-digits", _SD_OWN, "on-policy", DPM, _EVEN, "sd-own-uniform"),
        "flux-coarse-uniform": Bundled("flux-digits", _FLUX_COARSE, "uniform", None, _HALF),
        "flux-deep-uniform": Bundled("flux-digits", _FLUX_DEEP, "uniform", None, _HALF),
        "flux-deep-even": Bundled("flux-digits", _FLUX_DEEP, "on-policy", None, _HALF | _EVEN, "flux-deep-uniform"),
        "flux-deep-even-dpm": Bundled(
            "flux-digits", _FLUX_DEEP, "on-policy", FLOW_DPM, _HALF | _EVEN, "flux-deep-uniform"
        ),
    }
)
"""By name: the pipeline, whether weights are shared with Dash, and where pairs come from."""


def prepared(chosen: Bundled, folder: Path | None = None) -> Any:
    """The pipeline with the scheduler that a Dot is trained with.

    Args:
        chosen: the Dot.
        folder: of the pipeline, where it is not the one that is shipped.
    """
    pipe = bundled.load(chosen.pipeline) if folder is None else diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if chosen.scheduler is not None:
        kind, settings = chosen.scheduler
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **settings)
    return pipe


def train(name: str, output: Path, folder: Path | None = None, **settings: Any) -> MorseDot:
    """Train a Dot of ``DOTS`` in ``output``/``name``; ``settings`` go before its own."""
    chosen = DOTS[name]
    pipe = prepared(chosen, folder)
    torch.manual_seed(0)  # of the Dot's first weights
    dot = MorseDot.of(only_network(pipe), **chosen.network)
    if chosen.begin:
        dot = MorseDot.from_pretrained(output / chosen.begin)
    settings = {**TOY, **chosen.settings, **{k: v for k, v in settings.items() if v is not None}}
    data = BundledRenders(chosen.pipeline)
    trained: MorseDot = train_dot(pipe, data, dot, output=output / name, pairs=chosen.pairs, **settings)
    return trained


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(DOTS), metavar="NAME", help=", ".join(DOTS))
    parser.add_argument("--output", type=Path, required=True, help="folder of all Dots")
    parser.add_argument("--pipeline", type=Path, help="folder of the pipeline, if it is not the one that is shipped")
    parser.add_argument("--iterations", type=int, help="steps of the optimizer")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.name, arguments.output, arguments.pipeline, iterations=arguments.iterations)


if __name__ == "__main__":
    main()
