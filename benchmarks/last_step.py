"""What the last step is worth: the official schedule, the same with the last step added, and diffusers' schedule.

    python benchmarks/last_step.py --output benchmarks/last_step.json

TaylorSeer of order 2 at level model, 64 pictures of held-out prompts from the bundled pipeline; PSNR is to the full
run from the same noise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from results import environment

from diffaccel import Plan, TaylorSeer, accelerate_pipeline
from diffaccel.metrics.parity import psnr
from diffaccel.pipelines import bundled, image

PICTURES, WARMUP, ORDER = 64, 3, 2


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    pipe, prompts = bundled.load(), bundled.prompts("held-out")[:PICTURES]
    pipe.set_progress_bar_config(leave=False)
    rows = []
    for steps in (28, 50):
        full = image.pictures(pipe, prompts, list(range(PICTURES)), steps)
        for interval in (3, 4):
            plans = {
                "official": Plan.every(interval, steps, WARMUP),
                "official, last step too": Plan.every(interval, steps, WARMUP, last=True),
                "diffusers": Plan.diffusers(interval, steps, WARMUP),
            }
            for name, plan in plans.items():
                accelerate_pipeline(pipe, TaylorSeer(order=ORDER, warmup=WARMUP, schedule=plan))
                fast = image.pictures(pipe, prompts, list(range(PICTURES)), steps)
                pipe.acceleration.remove()
                value = psnr(fast, full).mean().item()
                rows.append({"steps": steps, "interval": interval, "schedule": name, "computed": plan.computed()})
                rows[-1]["psnr_db"] = value
                print(f"| {steps} | {interval} | {name} | {len(plan.computed())} | {value:.1f} |")
    settings = {"pictures": PICTURES, "seeds": "0 to 63", "order": ORDER, "warmup": WARMUP, "level": "model"}
    result = {**environment("python " + " ".join(sys.argv)), "settings": settings, "rows": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
