"""Measure a shipped pipeline and the checker: ``python -m diffaccel.pipelines.bundled.digits.evaluate``.

Prints the gates as a table, writes them to ``gates.json`` in the pipeline's folder and the table into its model card.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.pipelines import bundled, image
from diffaccel.pipelines.bundled.digits.captions import Scene, mixed_scenes, scenes
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker, accuracy, held_out_renders
from diffaccel.pipelines.bundled.digits.data import Renderer
from diffaccel.pipelines.bundled.digits.sampling import generate
from diffaccel.pipelines.bundled.digits.vae import reconstruct

SETTINGS = (
    ("held-out prompts", 28, 2.5),
    ("held-out prompts", 28, 1.5),
    ("held-out prompts", 28, 1.0),
    ("held-out prompts", 50, 2.5),
    ("held-out prompts", 50, 1.0),
    ("train prompts", 28, 2.5),
)
"""What is measured of a generator: prompts, steps, guidance."""
CLASSES = tuple(("all classes", steps, guidance) for _, steps, guidance in SETTINGS[:-1])
"""The same where prompts are classes, all of which were trained on."""
SCENES = 48
"""Scenes of each kind that are generated; all of them where prompts are classes."""
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


def measure_reading(
    checker: DigitsChecker, pipeline: Any, count: int, kinds: dict[str, int] = KINDS, seed: int = 1
) -> list[Row]:
    """The checker on held-out handwriting, before and after the pipeline's VAE."""
    rows: list[Row] = []
    for kind, items in kinds.items():
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


def measure_generator(
    checker: DigitsChecker, pipeline: Any, repeats: int, kinds: dict[str, int] = KINDS, seed: int = 0
) -> list[Row]:
    """Exact captions and their parts in generated pictures, and diversity, in all settings.

    Pictures of both kinds come in equal numbers, so the row of both is the mean of the kinds.
    """
    rows: list[Row] = []
    for prompts, steps, guidance in tqdm(SETTINGS if len(kinds) > 1 else CLASSES, desc="settings"):
        found: list[Row] = []
        what = f"generator, {prompts}, {steps} steps, guidance {guidance:g}"
        arguments = image.call_arguments(pipeline, steps, guidance)
        for kind, items in kinds.items():
            expected = chosen(prompts, items) * repeats
            images = generate(pipeline, [scene.caption for scene in expected], arguments, seed)
            rates = accuracy(checker, images, expected) | {"diversity": diversity(images, expected)}
            found.append({"what": f"{what}, {kind} (seed {seed})", "n": len(expected), **rates})
        if len(found) > 1:
            both: Row = {"what": f"{what}, both kinds (seed {seed})", "n": sum(int(row["n"]) for row in found)}
            rows.append(both | {key: sum(float(row[key]) for row in found) / len(found) for key in RATES})
        rows += found
    return rows


def chosen(prompts: str, items: int) -> list[Scene]:
    """The scenes with so many items that the words of a setting mean."""
    if prompts == "all classes":
        return scenes(items=1)
    every = mixed_scenes("held-out" if prompts == "held-out prompts" else "train")
    return [scene for scene in every if len(scene.items) == items][:SCENES]


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
    parser.add_argument("--pipeline", choices=bundled.NAMES, default="flux-digits", help="which is measured")
    parser.add_argument("--pictures", type=int, default=4000, help="rendered pictures of each kind for checker and VAE")
    parser.add_argument("--repeats", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline, checker = bundled.load(arguments.pipeline), bundled.checker()
    kinds = {"one digit": 1} if arguments.pipeline in bundled.SINGLE else KINDS
    rows = measure_reading(checker, pipeline, arguments.pictures, kinds)
    rows += measure_generator(checker, pipeline, arguments.repeats, kinds)
    print(table(rows))
    folder = bundled.path(arguments.pipeline)
    (folder / "gates.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_card(folder / "README.md", table(rows))


if __name__ == "__main__":
    main()
