"""Keep statistics of rendered pictures: ``python -m diffaccel.pipelines.bundled.digits.renders``.

Held-out handwriting in held-out scenes, half of them pairs unless ``--single`` is given: what the bundled pipelines
should draw of held-out prompts, in the features of the bundled checker; with ``--grey``, held-out handwriting as
``ddpm-digits`` should draw it. Needs scikit-learn. Make all files anew whenever the checker is trained anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffaccel.metrics.extractor import as_bytes, load_extractor
from diffaccel.metrics.statistics import Statistics, of
from diffaccel.pipelines.bundled.digits import ddpm
from diffaccel.pipelines.bundled.digits.captions import Split, scenes
from diffaccel.pipelines.bundled.digits.data import Renderer, scene_table


def render_statistics(count: int, keep: int, seed: int = 3, items: Literal[1, 2] | None = None) -> Statistics:
    """Statistics of ``count`` renders in the features of ``fd_digits``, with ``keep`` of the features; of scenes with
    so many ``items``, or of both kinds in equal parts."""
    images, _ = Renderer("held-out", seed).batch(scene_table(scenes("held-out", items)), count)
    return of_pictures(images, keep)


def grey_statistics(count: int, keep: int, seed: int = 3, split: Split = "held-out") -> Statistics:
    """The same of grey handwriting, drawn at random as for training, in the colours of ``ddpm.coloured``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        images, _ = ddpm.GreyRenderer(Renderer(split, seed)).batch(count)
    return of_pictures(ddpm.coloured(images), keep)


def of_pictures(images: Tensor, keep: int) -> Statistics:
    """Statistics of pictures [N, 3, 32, 32] in -1..1 in the features of ``fd_digits``, with ``keep`` of these."""
    extractor = load_extractor("fd_digits")
    return of(extractor(as_bytes((images + 1).clamp(0, 2) / 2)), extractor.identity, keep)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000, help="renders")
    parser.add_argument("--keep", type=int, default=1000, help="features that are kept for kernel distance and recall")
    parser.add_argument("--single", action="store_true", help="scenes of one digit only")
    parser.add_argument("--grey", action="store_true", help="grey handwriting of one digit")
    parser.add_argument("--output", type=Path, help="file to write (default: in digits_renders)")
    arguments = parser.parse_args()
    if arguments.single and arguments.grey:
        parser.error("--grey is of single digits already: leave out --single")
    kind = "_single" if arguments.single else "_grey" if arguments.grey else ""
    output = arguments.output or Path(__file__).resolve().parents[1] / "digits_renders" / f"fd_digits{kind}.npz"
    if arguments.grey:
        made = grey_statistics(arguments.pictures, arguments.keep)
    else:
        made = render_statistics(arguments.pictures, arguments.keep, items=1 if arguments.single else None)
    made.save(output)


if __name__ == "__main__":
    main()
