"""Keep statistics of rendered pictures: ``python -m diffaccel.pipelines.bundled.digits.renders``.

Held-out handwriting in held-out scenes, half of them pairs: what the bundled pipelines should draw of held-out prompts,
in the features of the bundled checker. Needs scikit-learn. Make them anew whenever the checker is trained anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffaccel.metrics.extractor import as_bytes, load_extractor
from diffaccel.metrics.statistics import Statistics, of
from diffaccel.pipelines.bundled.digits.captions import scenes
from diffaccel.pipelines.bundled.digits.data import Renderer, scene_table


def render_statistics(count: int, keep: int, seed: int = 3) -> Statistics:
    """Statistics of ``count`` renders in the features of ``fd_digits``, with ``keep`` of the features."""
    images, _ = Renderer("held-out", seed).batch(scene_table(scenes("held-out")), count)
    extractor = load_extractor("fd_digits")
    return of(extractor(as_bytes((images + 1).clamp(0, 2) / 2)), extractor.identity, keep)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000, help="renders")
    parser.add_argument("--keep", type=int, default=1000, help="features that are kept for kernel distance and recall")
    folder = Path(__file__).resolve().parents[1] / "digits_renders"
    parser.add_argument("--output", type=Path, default=folder / "fd_digits.npz", help="file to write")
    arguments = parser.parse_args()
    render_statistics(arguments.pictures, arguments.keep).save(arguments.output)


if __name__ == "__main__":
    main()
