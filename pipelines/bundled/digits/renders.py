"""Keep statistics of rendered pictures: ``python -m diffaccel.pipelines.bundled.digits.renders``.

Held-out handwriting in held-out scenes, half of them pairs unless ``--single`` is given: what the bundled pipelines
should draw of held-out prompts, in the features of the bundled checker. Needs scikit-learn. Make both files anew
whenever the checker is trained anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from diffaccel.metrics.extractor import as_bytes, load_extractor
from diffaccel.metrics.statistics import Statistics, of
from diffaccel.pipelines.bundled.digits.captions import scenes
from diffaccel.pipelines.bundled.digits.data import Renderer, scene_table


def render_statistics(count: int, keep: int, seed: int = 3, items: Literal[1, 2] | None = None) -> Statistics:
    """Statistics of ``count`` renders in the features of ``fd_digits``, with ``keep`` of the features; of scenes with
    so many ``items``, or of both kinds in equal parts."""
    images, _ = Renderer("held-out", seed).batch(scene_table(scenes("held-out", items)), count)
    extractor = load_extractor("fd_digits")
    return of(extractor(as_bytes((images + 1).clamp(0, 2) / 2)), extractor.identity, keep)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000, help="renders")
    parser.add_argument("--keep", type=int, default=1000, help="features that are kept for kernel distance and recall")
    parser.add_argument("--single", action="store_true", help="scenes of one digit only")
    parser.add_argument("--output", type=Path, help="file to write (default: fd_digits.npz or fd_digits_single.npz)")
    arguments = parser.parse_args()
    name = "fd_digits_single.npz" if arguments.single else "fd_digits.npz"
    output = arguments.output or Path(__file__).resolve().parents[1] / "digits_renders" / name
    render_statistics(arguments.pictures, arguments.keep, items=1 if arguments.single else None).save(output)


if __name__ == "__main__":
    main()
