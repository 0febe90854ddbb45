"""TaylorSeer and calibrated methods on the bundled DiT and Stable Diffusion pipelines, against plain runs.

    python benchmarks/families.py --models dit-digits --output benchmarks/families_dit.json
    python benchmarks/families.py --models sd-digits --output benchmarks/families_sd.json

Every case makes the same pictures from the same noise and is compared with the full run. TaylorSeer of order 0 keeps
what was computed last: at level "deep" that is DeepCache, at level "sublayer" FORA. Times are those of whole calls of
the pipeline, text encoder and VAE included, on one thread, taken in turn with the full run, a few cases at once so that
all of a round fall into the same moment; ratios are of processor time, which other jobs on the machine disturb least.
`families_table.py` shows the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from results import environment, mean, share
from tqdm.auto import tqdm

from diffaccel.evaluation import timing
from diffaccel.evaluation.candidates import Candidate, accelerations
from diffaccel.evaluation.subject import Drawn, Subject
from diffaccel.metrics.parity import psnr, relative_l2
from diffaccel.pipelines import bundled, image
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker
from diffaccel.pipelines.source import fingerprint

LEVELS = {"dit-digits": ("model", "sublayer"), "sd-digits": ("deep", "model", "sublayer")}
"""Levels of each pipeline: all intervals and orders at the first, and at "model"; `FEWER` at the others."""
INTERVALS, ORDERS = (2, 3, 4, 5, 6), (0, 1, 2)
FEWER = ((4, 0), (4, 1), (4, 2))
"""Intervals and orders at the other levels."""
CALIBRATED = tuple(f"{name}:interval={n}" for name in ("fitted", "hyca") for n in (4, 6))
GROUP = 4
"""Cases that are timed in turn with one full run."""


def texts(model: str) -> list[str]:
    """The methods that are compared on a pipeline, as the command line spells them."""
    found = []
    for level in LEVELS[model]:
        whole = level in (LEVELS[model][0], "model")
        settings = [(n, o) for o in ORDERS for n in INTERVALS] if whole else list(FEWER)
        found += [f"taylorseer:interval={n},order={o},level={level}" for n, o in settings]
    return [*found, *CALIBRATED]


class Fidelity:
    """How the pictures of candidates differ from those of the full run, picture by picture."""

    def __init__(self, subject: Subject, checker: DigitsChecker, batch: int) -> None:
        self.subject, self.checker, self.batch = subject, checker, batch
        self.full = self.draw(Candidate.full(subject.steps))

    def draw(self, candidate: Candidate) -> Drawn:
        """All pictures."""
        starts = range(0, len(self.subject.prompts), self.batch)
        drawn = [self.subject.draw(candidate, slice(start, start + self.batch)) for start in starts]
        return Drawn(torch.cat([part.pictures for part in drawn]), torch.cat([part.latents for part in drawn]))

    def exact(self, drawn: Drawn) -> list[bool]:
        """Whether each picture is read as its prompt."""
        read = self.checker.read(2 * drawn.pictures - 1)
        return [one == prompt for one, prompt in zip(read, self.subject.prompts, strict=True)]

    def of(self, candidate: Candidate) -> dict[str, Any]:
        """PSNR and relative L2 a picture, and which are read exactly."""
        drawn = self.draw(candidate)
        return {
            "psnr": psnr(drawn.pictures, self.full.pictures).tolist(),
            "relative_l2": relative_l2(drawn.latents, self.full.latents).tolist(),
            "exact": self.exact(drawn),
        }


def run(model: str, steps: int, arguments: argparse.Namespace, checker: DigitsChecker) -> dict[str, Any]:
    """Everything that is compared with the full run of one pipeline."""
    pipe = image.load(model)
    pipe.set_progress_bar_config(disable=True)
    prompts = bundled.prompts("held-out", model)[:96]
    prompts = [prompts[i % len(prompts)] for i in range(arguments.pictures)]
    subject = Subject(pipe, prompts, arguments.seed, steps, image.call_arguments(pipe))
    methods = [candidate.prepared(pipe) for candidate in accelerations(texts(model), type(pipe).__name__, steps)]
    works = {candidate.name: subject.work(candidate) for candidate in methods}
    least = {name: subject.plain_steps(work) for name, work in works.items()}
    plain = [Candidate.fewer(n) for n in range(min(least.values()), min(steps, max(least.values()) + arguments.more))]
    fidelity = Fidelity(subject, checker, arguments.batch)
    found = {one.name: fidelity.of(one) for one in tqdm([*methods, *plain], desc=f"fidelity, {model}", unit="case")}
    times = measure_times(subject, [*methods, *plain], slice(arguments.timed_batch), arguments.rounds)
    cases = []
    for candidate in [*methods, *plain]:
        name = candidate.name
        computed = works[name].computed if name in works else candidate.steps
        entry = {
            "name": name,
            "method": candidate.written_out,
            "computed": computed,
            "bound": steps / computed,
            **summary(found[name]),
            "time": times[name],
        }
        if name in works:
            fits = [one for one in plain if times[one.name]["ratio"] <= times[name]["ratio"]]
            # A plain run that computes no more cannot take longer, whatever noise says.
            fits += [one for one in plain if one.steps <= least[name]]
            equal = max(fits, key=lambda one: one.steps)
            entry["equal_time"] = against(found[name], found[equal.name], equal.steps)
        cases.append(entry)
    exact = fidelity.exact(fidelity.full)
    return {
        "model": model,
        "weights": fingerprint(str(bundled.path(model))),
        "call": bundled.call_defaults(model),
        "steps": steps,
        "pictures": len(prompts),
        "full": {"exact": share(exact)},
        "cases": cases,
    }


def summary(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Means with 95% intervals."""
    return {**{key: mean(measured[key]) for key in ("psnr", "relative_l2")}, "exact": share(measured["exact"])}


def against(measured: Mapping[str, Any], other: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A plain run, and how much better a case is than it, by pairs of pictures."""
    gain = np.subtract(measured["psnr"], other["psnr"])
    return {"steps": steps, **summary(other), "psnr_gain": mean(gain)}


def measure_times(subject: Subject, candidates: list[Candidate], rows: slice, rounds: int) -> dict[str, Any]:
    """By name all times of each candidate and of the full run it was timed with, and the median of their ratios."""
    full, result = Candidate.full(subject.steps), {}
    for start in tqdm(range(0, len(candidates), GROUP), desc="times", unit="group"):
        group = candidates[start : start + GROUP]
        times = timing.measure(subject, [full, *group], rows, rounds, progress=False)
        reference = times[full.name]
        for one in group:
            ratio = times[one.name].ratio(reference, cpu=True)
            result[one.name] = {
                "ratio": ratio,
                "speed_up": 1 / ratio,
                "seconds": times[one.name].seconds,
                "cpu_seconds": times[one.name].cpu_seconds,
                "full_seconds": reference.seconds,
                "full_cpu_seconds": reference.cpu_seconds,
            }
    return result


def parse() -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(LEVELS), default=list(LEVELS), help="bundled pipelines")
    parser.add_argument("--steps", type=int, default=28, help="steps of the full runs; calibrations are for 28")
    parser.add_argument("--pictures", type=int, default=128, help="pictures of each case")
    parser.add_argument("--batch", type=int, default=32, help="pictures a call where fidelity is measured")
    parser.add_argument("--timed-batch", type=int, default=8, help="pictures a call that is timed")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each case")
    parser.add_argument("--more", type=int, default=8, help="plain runs of so many more steps than any case computes")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture, others follow")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    counts = [getattr(arguments, name) for name in ("pictures", "batch", "timed_batch", "rounds", "more")]
    if arguments.steps < 10 or min(counts) < 1:
        parser.error("--steps must be at least 10, and all other counts at least 1")
    if arguments.timed_batch > arguments.pictures:
        parser.error("--timed-batch cannot be more than --pictures")
    if not arguments.output.parent.is_dir():
        parser.error(f"the folder {arguments.output.parent} does not exist")
    return arguments


def main() -> None:
    """The command line."""
    arguments = parse()
    torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    checker = bundled.checker()
    runs = [run(model, arguments.steps, arguments, checker) for model in arguments.models]
    settings = {
        "seed": arguments.seed,
        "batch": arguments.batch,
        "timed_batch": arguments.timed_batch,
        "rounds": arguments.rounds,
        "threads": 1,
        "ratio": "processor time of whole calls over that of the full run, median over rounds of the ratio in each",
    }
    result = {**environment("python " + " ".join(sys.argv)), "settings": settings, "runs": runs}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
