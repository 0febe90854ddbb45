"""What first-block caching gives on the bundled pipeline, of order 0 and 1, beside TaylorSeer and fewer plain steps.

    python benchmarks/first_block.py --output benchmarks/first_block.json

PSNR to the full run from the same noise, 16 pictures of held-out prompts, drawn one by one, 28 steps; computed steps
are means over pictures. Processor time is that of all pictures, each candidate once, in the order of the table: a
guide, no measurement of speed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from results import environment
from tqdm.auto import tqdm

from diffaccel import FirstBlock, TaylorSeer, accelerate_pipeline
from diffaccel.methods import Method, written_out
from diffaccel.metrics.parity import psnr
from diffaccel.pipelines import bundled, image

PICTURES, STEPS = 16, 28
METHODS: list[Method] = [
    *(FirstBlock(threshold, order=order) for order in (0, 1) for threshold in (0.05, 0.1, 0.15, 0.2, 0.3)),
    *(FirstBlock(threshold, warmup=3, order=1, max_skipped=3) for threshold in (0.1, 0.2, 0.3)),
    *(TaylorSeer(interval, 2) for interval in (2, 3, 4)),
]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe, prompts = bundled.load(), bundled.prompts("held-out")[:PICTURES]
    pipe.set_progress_bar_config(disable=True)
    full = drawn(pipe, prompts, STEPS)
    rows: list[dict[str, Any]] = []
    for method in tqdm(METHODS, desc="methods"):
        accelerate_pipeline(pipe, method)
        found = drawn(pipe, prompts, STEPS)
        pipe.acceleration.remove()
        rows.append(row(written_out(method), found, full))
    rows += [row(f"{steps} plain steps", drawn(pipe, prompts, steps), full) for steps in (12, 16, 20, 24)]
    settings = {"pictures": PICTURES, "seeds": f"0 to {PICTURES - 1}", "steps": STEPS, "batch": 1, "threads": 1}
    result = {**environment("python " + " ".join(sys.argv)), "settings": settings, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for entry in rows:
        print(f"| {entry['name']} | {entry['computed']:.1f} | {entry['psnr_db']:.1f} | {entry['cpu_speedup']:.2f} |")


def drawn(pipe: Any, prompts: list[str], steps: int) -> dict[str, Any]:
    """The pictures, one a call; how many calls of the network ran all blocks, as a share; processor seconds."""
    pictures, share, start = [], [], time.process_time()
    for seed, prompt in enumerate(prompts):
        pictures.append(image.pictures(pipe, [prompt], [seed], steps))
        share.append(1 / pipe.acceleration.report().bound if hasattr(pipe, "acceleration") else 1.0)
    computed, cpu = steps * sum(share) / len(share), time.process_time() - start
    return {"pictures": torch.cat(pictures), "computed": computed, "cpu": cpu}


def row(name: str, found: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    value = psnr(found["pictures"], full["pictures"])
    finite = value[value.isfinite()]
    mean = finite.mean().item() if len(finite) else None
    speedup = full["cpu"] / found["cpu"]
    return {"name": name, "computed": found["computed"], "psnr_db": mean, "cpu_speedup": speedup}


if __name__ == "__main__":
    main()
