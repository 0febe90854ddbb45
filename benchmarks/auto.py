"""What auto expects, beside what is reached on prompts and noise it has never seen; bundled pipeline, one thread.

python benchmarks/auto.py --output benchmarks/auto.json
python benchmarks/auto.py --output benchmarks/auto.json --table README.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from results import environment, mean
from table import insert, rows
from torch import Tensor

from diffaccel import accelerate_pipeline
from diffaccel.auto.choice import Choice
from diffaccel.evaluation import timing
from diffaccel.evaluation.candidates import Candidate
from diffaccel.evaluation.subject import Subject
from diffaccel.metrics.parity import psnr
from diffaccel.pipelines import bundled, image

TARGETS = [("psnr", 35.0), ("psnr", 45.0), ("psnr", 50.0), ("speedup", 2.0), ("speedup", 2.5), ("speedup", 3.0)]
PROMPTS = 96  # so many of the held-out prompts hold one and two digits in equal parts; they are repeated
SEED = 100_000  # of the held-out pictures; auto draws from seed 0 on
BEGIN, END = "<!-- auto:begin -->", "<!-- auto:end -->"


class HeldOut:
    """The bundled pipeline with prompts it was not trained on."""

    def __init__(self, pipe: Any, pictures: int, steps: int, batch: int) -> None:
        prompts = bundled.prompts("held-out")[:PROMPTS]
        arguments = image.call_arguments(pipe)
        self.subject = Subject(pipe, [prompts[i % PROMPTS] for i in range(pictures)], SEED, steps, arguments)
        self.batch, self.full = batch, Candidate.full(steps)
        self.reference = self.draw(self.full)

    def draw(self, candidate: Candidate) -> Tensor:
        """All pictures of a candidate."""
        pipe, count, size = self.subject.pipe, len(self.subject.prompts), 16
        with candidate.applied(pipe):
            return torch.cat([self.subject.pictures(candidate, slice(i, i + size)) for i in range(0, count, size)])

    def compare(self, choice: Choice, rounds: int) -> dict[str, Any]:
        """What a choice reaches here, and what the plain run it is held against does."""
        chosen = Candidate(choice.name, "method", self.full.steps, choice.method)
        plain = Candidate.fewer(choice.plain.steps)
        times = timing.measure(self.subject, [self.full, chosen, plain], slice(self.batch), rounds, progress=False)
        clock = timing.Clock(cpu=True)
        return {
            name: {
                "psnr": mean(values := psnr(self.draw(candidate), self.reference).clamp(max=120).numpy()),
                "worst": float(values.min()),
                "time": timing.as_data(clock, times[candidate.name], times[self.full.name]),
            }
            for name, candidate in (("chosen", chosen), ("plain", plain))
        }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The recorded result of all targets."""
    torch.set_num_threads(1)
    pipe = image.load()
    pipe.set_progress_bar_config(disable=True)
    held_out = HeldOut(pipe, arguments.pictures, arguments.steps, arguments.batch)
    entries = []
    for name, value in TARGETS:
        accelerate_pipeline(pipe, "auto", steps=arguments.steps, batch=arguments.batch, **{name: value})
        choice = pipe.acceleration.method.choice
        pipe.acceleration.remove()
        print(choice, file=sys.stderr)
        entries.append({"choice": choice.as_dict(), "reached": held_out.compare(choice, arguments.rounds)})
    settings = {
        "pictures": arguments.pictures,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "threads": 1,
    }
    return {**environment("python " + " ".join(sys.argv)), "settings": settings, "targets": entries}


def as_table(result: Mapping[str, Any]) -> str:
    """Expected beside reached, as Markdown."""
    settings, machine = result["settings"], result["machine"]
    header = ["asked for", "auto chose", "computed", "expected PSNR, dB", "reached", "expected speed-up", "reached"]
    lines = [[*header, "plain steps in its time"]]
    for entry in result["targets"]:
        choice, chosen, plain = entry["choice"], entry["reached"]["chosen"], entry["reached"]["plain"]
        target = {name: value for name, value in choice["target"].items() if value is not None}
        own, quality = chosen["psnr"], choice["psnr"]
        lines.append(
            [
                " ".join(f"`{name}={value:g}`" for name, value in target.items()),
                f"`{choice['method']}`",
                f"{len(choice['plan'])} of {settings['steps']}",
                f"{quality['mean']:.1f} ({quality['low']:.1f}-{quality['high']:.1f})",
                f"{own['mean']:.1f} ({own['low']:.1f}-{own['high']:.1f})",
                f"{choice['speedup']['median']:.2f}x",
                f"{chosen['time']['speedup']:.2f}x",
                f"{choice['plain']['steps']}: {plain['psnr']['mean']:.1f} dB, {plain['time']['speedup']:.2f}x",
            ]
        )
    note = (
        f"Expected: from {result['targets'][0]['choice']['psnr']['n']} pictures of prompts that were not learnt from, "
        f"with the 95% interval of their mean. Reached: {settings['pictures']} pictures of held-out prompts from other "
        f"noise, with 95% intervals, and times taken anew ({settings['rounds']} rounds). flux-digits, "
        f"{settings['steps']} steps, whole calls of {settings['batch']} pictures, processor time on one thread "
        f"({machine['cpu']}, torch {result['versions']['torch']}, diffusers {result['versions']['diffusers']}, "
        f"{result['date'][:10]}). Recorded by `{result['command']}`."
    )
    return f"{note}\n\n{rows(lines)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=28, help="of the full run")
    parser.add_argument("--pictures", type=int, default=128, help="held-out pictures")
    parser.add_argument("--batch", type=int, default=8, help="pictures a call that is timed")
    parser.add_argument("--rounds", type=int, default=7, help="timings of what was chosen")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write, or to read for --table")
    parser.add_argument("--table", type=Path, help=f"document that takes the table, between {BEGIN} and {END}")
    arguments = parser.parse_args()
    if arguments.table is not None:
        insert(as_table(json.loads(arguments.output.read_text())), arguments.table, BEGIN, END)
        return
    result = measure(arguments)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(as_table(result))


if __name__ == "__main__":
    main()
