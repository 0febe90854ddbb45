"""Measure the shipped unconditional pipeline: ``python -m diffaccel.pipelines.bundled.digits.evaluate_ddpm``.

Prints the gates as a table, writes them to ``gates.json`` in the pipeline's folder and the table into its model card.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import torch
from diffusers import DDPMPipeline
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.metrics import statistics
from diffaccel.metrics.extractor import load_extractor
from diffaccel.metrics.fid import frechet_distance
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits import ddpm
from diffaccel.pipelines.bundled.digits.captions import Split
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker
from diffaccel.pipelines.bundled.digits.data import Renderer
from diffaccel.pipelines.bundled.digits.evaluate import Row, write_card
from diffaccel.pipelines.bundled.digits.renders import of_pictures

NAME = "ddpm-digits"
RUNS = (("DDIM", 20), ("DDIM", 50), ("DDPM", 50))
"""Samplers and steps that are measured."""
SPLITS: tuple[Split, ...] = ("held-out", "train")
SURE = (0.5, 0.9)
"""How sure of a digit the checker has to be."""


def measure(checker: DigitsChecker, pictures: Tensor) -> Row:
    """How grey pictures [N, 1, 16, 16] in -1..1 read, and how far their features are from held-out handwriting's."""
    reference = statistics.load(bundled.renders_path(NAME))
    own = of_pictures(ddpm.coloured(pictures), keep=0)
    statistics.check(reference, load_extractor("fd_digits").identity)
    rates = [ddpm.legibility(checker, pictures, sure) for sure in SURE]
    row: Row = {f"legible {sure:g}": rate["legible"] for sure, rate in zip(SURE, rates, strict=True)}
    distance = frechet_distance(own.mu, own.sigma, reference.mu, reference.sigma)
    return row | {"evenness": rates[0]["evenness"], "fd_digits": distance}


def pictures(pipe: DDPMPipeline, count: int, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """What is measured, by name: handwriting of both splits, which is the reference, and what the pipeline draws."""
    for split in SPLITS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield f"{split} handwriting (seed {seed})", ddpm.GreyRenderer(Renderer(split, seed)).batch(count)[0]
    samplers = {"DDIM": ddpm.deterministic(pipe), "DDPM": pipe}
    for name, steps in RUNS:
        yield f"generator, {name}, {steps} steps (seed {seed})", ddpm.draw(samplers[name], count, steps, seed)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    columns = [*(f"legible {sure:g}" for sure in SURE), "evenness", "fd_digits"]
    lines = [f"| measured | n | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for row in rows:
        numbers = [f"{row[key]:.2f}" if key == "fd_digits" else f"{row[key]:.3f}" for key in columns]
        lines.append(f"| {row['what']} | {row['n']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="of each row")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipe, checker = bundled.load(NAME), bundled.checker()
    shown = tqdm(pictures(pipe, arguments.pictures), total=len(SPLITS) + len(RUNS), desc="gates")
    rows: list[Row] = [{"what": what, "n": arguments.pictures, **measure(checker, drawn)} for what, drawn in shown]
    print(table(rows))
    folder = bundled.path(NAME)
    (folder / "gates.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_card(folder / "README.md", table(rows))


if __name__ == "__main__":
    main()
