"""Measure the shipped pipeline and checker: ``python -m diffaccel.pipelines.bundled.digits.evaluate``.

Prints the gates as a table, writes them to ``gates.json`` in the pipeline's folder and the table into its model card.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from diffusers import FluxPipeline
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits.captions import Scene, mixed_scenes
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker, accuracy, held_out_renders
from diffaccel.pipelines.bundled.digits.data import Renderer
from diffaccel.pipelines.bundled.digits.flux import generate
from diffaccel.pipelines.bundled.digits.vae import reconstruct

SETTINGS = (
    ("held-out", 28, 2.5),
    ("held-out", 28, 1.5),
    ("held-out", 28, 1.0),
    ("held-out", 50, 2.5),
    ("held-out", 50, 1.0),
    ("train", 28, 2.5),
)
"""What is measured of the generator: prompts, steps, guidance."""
SCENES = 48
"""Scenes of each kind that are generated."""
KINDS = {"one digit": 1, "two digits": 2}
RATES = ("exact", "layout", "digit", "colour")
MARK = "<!-- gates -->"

Row = dict[str, float | str]


def psnr(images: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1."""
    return 10 * math.log10(4 / (images - reference).square().mean().item())


def diversity(images: Tensor, expected: list[Scene], seed: int = 2) -> float:
    """How different pictures of the same scene are, relative to renders of held-out handwriting in that scene.

    The mean squared distance of pictures to their scene's mean picture, over that of as many renders; 1 is as diverse.
    """
    groups = [[row for row, scene in enumerate(expected) if scene == one] for one in sorted(set(expected))]
    renders = Renderer("held-out", seed).draw(expected)
    spread = [sum(float(part[rows].var(0).sum()) for rows in groups) for part in (images, renders)]
    return spread[0] / spread[1]


def measure_reading(checker: DigitsChecker, pipeline: FluxPipeline, count: int, seed: int = 1) -> list[Row]:
    """The checker on held-out handwriting, before and after the VAE."""
    rows: list[Row] = []
    for kind, items in KINDS.items():
        images, expected = held_out_renders(count, seed, items)  # type: ignore[arg-type]
        decoded = reconstruct(pipeline.vae, images)
        named = {
            "checker, renders of held-out handwriting": images,
            f"checker, the same after the VAE ({psnr(decoded, images):.1f} dB)": decoded,
        }
        for what, shown in named.items():
            what = f"{what}, {kind} (seed {seed})"
            rows.append({"what": what, "n": count, **accuracy(checker, shown, expected)})
    return rows


def measure_generator(checker: DigitsChecker, pipeline: FluxPipeline, repeats: int, seed: int = 0) -> list[Row]:
    """Exact captions and their parts in generated pictures, and diversity, in all ``SETTINGS``.

    Pictures of both kinds come in equal numbers, so the row of both is the mean of the kinds.
    """
    rows: list[Row] = []
    for split, steps, guidance in tqdm(SETTINGS, desc="settings"):
        kinds: list[Row] = []
        chosen = mixed_scenes("held-out" if split == "held-out" else "train")
        for kind, items in KINDS.items():
            expected = [scene for scene in chosen if len(scene.items) == items][:SCENES] * repeats
            images = generate(pipeline, [scene.caption for scene in expected], steps, guidance, seed)
            what = f"generator, {split} prompts, {steps} steps, guidance {guidance:g}"
            rates = accuracy(checker, images, expected) | {"diversity": diversity(images, expected)}
            kinds.append({"what": f"{what}, {kind} (seed {seed})", "n": len(expected), **rates})
        both: Row = {"what": f"{what}, both kinds (seed {seed})", "n": sum(int(row["n"]) for row in kinds)}
        both |= {key: sum(float(row[key]) for row in kinds) / len(kinds) for key in RATES}
        rows += [both, *kinds]
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    columns = (*RATES, "diversity")
    lines = ["| measured | n | exact | layout | all digits | all colours | diversity |", "|---" * 7 + "|"]
    for row in rows:
        numbers = [f"{row[key]:.3f}" if key in row else "-" for key in columns]
        lines.append(f"| {row['what']} | {row['n']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def write_card(card: Path, text: str) -> None:
    """Put a text between the two marks of a model card.

    Raises:
        ValueError: the card does not have two marks.
    """
    parts = card.read_text().split(MARK)
    if len(parts) != 3:
        raise ValueError(f"{card} should hold {MARK} twice, around the table")
    card.write_text(f"{parts[0]}{MARK}\n{text}\n{MARK}{parts[2]}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4000, help="rendered pictures of each kind for checker and VAE")
    parser.add_argument("--repeats", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = FluxPipeline.from_pretrained(bundled.path("flux-digits"), dtype=torch.float32)
    checker = bundled.checker()
    rows = measure_reading(checker, pipeline, arguments.pictures)
    rows += measure_generator(checker, pipeline, arguments.repeats)
    print(table(rows))
    folder = bundled.path("flux-digits")
    (folder / "gates.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_card(folder / "README.md", table(rows))


if __name__ == "__main__":
    main()
