"""What "slow", "medium", "fast" and "ultra" stand for: settings of TaylorSeer that need no calibration, compared.

    python benchmarks/speeds.py --output benchmarks/speeds.json

PSNR to the full run from the same noise, 32 pictures of held-out prompts from the bundled pipeline, beside plain runs
of as many steps as a setting computes; processor time of whole calls at 16 pictures, for the words only.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from results import environment
from tqdm.auto import tqdm

from diffaccel import TaylorSeer, accelerate_pipeline
from diffaccel.methods.speeds import SPEEDS
from diffaccel.metrics.parity import psnr
from diffaccel.metrics.speed import alternate
from diffaccel.pipelines import bundled, image

PICTURES, BATCH, ROUNDS, WARMUP = 32, 16, 5, 3
LENGTHS, TIMED = (10, 20, 28, 50), (28, 50)


def candidates() -> list[TaylorSeer]:
    """All settings that are compared; Newton and Taylor are the same at order 1."""
    rules = [
        (o, forecast) for o, forecast in product((1, 2, 3), ("taylor", "newton")) if (o, forecast) != (1, "newton")
    ]
    return [
        TaylorSeer(n, o, WARMUP, forecast=forecast, last=last)
        for n, (o, forecast), last in product((2, 3, 4, 5, 6), rules, (False, True))
        if n <= 3 or (o < 3 and forecast == "taylor")
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe, prompts = bundled.load(), bundled.prompts("held-out")[:PICTURES]
    pipe.set_progress_bar_config(disable=True)
    rows = [row for steps in LENGTHS for row in compared(pipe, prompts, steps)]
    times = {str(steps): timed(pipe, prompts[:BATCH], steps) for steps in TIMED}
    settings = {"pictures": PICTURES, "seeds": f"0 to {PICTURES - 1}", "warmup": WARMUP, "level": "model"}
    settings |= {"timed batch": BATCH, "rounds": ROUNDS, "threads": 1}
    result = {**environment("python " + " ".join(sys.argv)), "settings": settings, "words": words()}
    arguments.output.write_text(json.dumps({**result, "rows": rows, "times": times}, indent=1) + "\n")


def words() -> dict[str, dict[str, Any]]:
    """The options each word stands for."""
    return {word: dict(options) for word, options in SPEEDS.items()}


def compared(pipe: Any, prompts: list[str], steps: int) -> list[dict[str, Any]]:
    """PSNR of every candidate, and of plain runs of as many steps as one of them computes."""
    draw = partial(image.pictures, pipe, prompts, list(range(len(prompts))))
    full, rows = draw(steps), []
    for method in tqdm(candidates(), desc=f"{steps} steps"):
        computed = len(method.plan([], steps).computed())
        accelerate_pipeline(pipe, method)
        value = psnr(draw(steps), full).mean().item()
        pipe.acceleration.remove()
        rows.append({"steps": steps, "interval": method.interval, "order": method.order, "forecast": method.forecast})
        rows[-1] |= {"last": method.last, "computed": computed, "psnr_db": value if value < float("inf") else None}
    for count in sorted({row["computed"] for row in rows} - {steps}):
        rows.append({"steps": steps, "plain": count, "computed": count})
        rows[-1]["psnr_db"] = psnr(draw(count), full).mean().item()
    return rows


def timed(pipe: Any, prompts: list[str], steps: int) -> dict[str, Any]:
    """Processor time of the full run and of each word, in turn."""
    draw = partial(image.pictures, pipe, prompts, list(range(len(prompts))), steps)

    def accelerated(word: str) -> None:
        accelerate_pipeline(pipe, word)
        draw()
        pipe.acceleration.remove()

    runs = {"full": draw, **{word: partial(accelerated, word) for word in SPEEDS}}
    found = alternate(runs, ROUNDS)
    full = sorted(found["full"].cpu_seconds)
    return {
        word: {
            "cpu_seconds": timing.cpu_seconds,
            "speedup": full[ROUNDS // 2] / sorted(timing.cpu_seconds)[ROUNDS // 2],
            "computed": steps if word == "full" else len(TaylorSeer(**SPEEDS[word]).plan([], steps).computed()),
        }
        for word, timing in found.items()
    }


if __name__ == "__main__":
    main()
