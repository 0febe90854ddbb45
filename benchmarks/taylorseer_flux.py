"""TaylorSeer on the bundled Flux pipeline: what each setting costs in fidelity and gains in time.

    python benchmarks/taylorseer_flux.py --steps 28 50 --prompts 256 --output benchmarks/taylorseer_flux.json

Every case makes the same pictures from the same noise and is compared with the full run: TaylorSeer at all levels,
orders and intervals, diffusers' own TaylorSeer, and plain runs of fewer steps at equal computed steps and at equal
measured time. Times are those of denoising alone, on one thread, taken in turn with the full run; ratios are of
processor time, which other jobs on the machine disturb least, and wall times are recorded beside them. A run that was
interrupted goes on where it stopped when the same command is given again; `table.py` and `plot.py` show the result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import Bench, Journal
from cases import FEWER, Case, accelerated, full
from results import assemble, commit, environment
from tqdm.auto import tqdm

from diffaccel.pipelines import bundled


@dataclass(frozen=True)
class Timer:
    """Measures or recalls times. They depend on the network's shape, not on its weights."""

    bench: Bench
    journal: Journal
    rounds: dict[int, int]  # by batch

    def measure(self, cases: list[Case], batch: int) -> dict[tuple[int, str], Any]:
        """Times of cases of one full run by batch and name, taken in turn."""
        mark = f"time, {self.shape()}, {self.rounds[batch]} rounds, batch {batch}"
        keys = {case: f"{mark}, {case.name}" for case in cases}
        missing = [case for case, key in keys.items() if key not in self.journal.entries]
        if missing:
            for case, entry in zip(missing, self.bench.time(missing, batch, self.rounds[batch]), strict=True):
                self.journal.add(keys[case], entry | {"git_commit": commit()})
        return {(batch, case.name): self.journal.entries[key] for case, key in keys.items()}

    def shape(self) -> str:
        """A mark of all that the time of a step depends on: the network's configuration, tokens and branches."""
        config, call = self.bench.pipe.transformer.config, self.bench.arguments
        described = {key: value for key, value in config.items() if not key.startswith("_")}
        described |= {key: call[key] for key in ("height", "width", "max_sequence_length")}
        described["branches"] = self.bench.branches
        return f"network {hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]}"

    def all(self, steps: int, batches: list[int]) -> dict[tuple[int, str], Any]:
        """Times of all accelerated cases, then of plain runs with as many steps as take as long as these."""
        cases = list(dict.fromkeys(case.timed for case in accelerated(steps)))
        kinds = dict.fromkeys((case.family, case.order) for case in cases)
        groups = [[case for case in cases if (case.family, case.order) == kind] for kind in kinds]
        times: dict[tuple[int, str], Any] = {}
        with tqdm(total=len(batches) * (len(groups) + 1), desc=f"times, {steps} steps", unit="group") as bar:
            for batch in batches:
                for group in groups:
                    times |= self.measure(group, batch)
                    bar.update()
                ratios = [times[batch, case.name]["ratio"] for case in cases]
                fewest, most = max(2, int(min(ratios) * steps) - 1), min(steps - 1, int(max(ratios) * steps) + 1)
                times |= self.measure([Case(steps, FEWER, n) for n in range(fewest, most + 1)], batch)
                bar.update()
        return times


def plain_at_equal_time(case: Case, batch: int, times: dict[tuple[int, str], Any]) -> Case | None:
    """The plain run whose measured time is nearest to that of an accelerated case, and not above it."""
    limit = times[batch, case.timed.name]["ratio"]
    ratios = {
        plain: times[batch, plain.name]["ratio"]
        for n in range(case.steps)
        if (batch, (plain := Case(case.steps, FEWER, n)).name) in times
    }
    return max((plain for plain in ratios if ratios[plain] <= limit), key=ratios.__getitem__, default=None)


_bench: Bench  # of a worker process


def _start(pictures: int, seed: int, batch: int) -> None:
    global _bench
    _bench = Bench(pictures, seed, batch)


def _quality(case: Case) -> dict[str, Any]:
    return _bench.quality(case)


def measure_quality(
    cases: Iterable[Case], pool: ProcessPoolExecutor, journal: Journal, mark: str
) -> dict[str, dict[str, Any]]:
    """Fidelity of cases by name, measured or recalled; `mark` tells weights, seed and number of pictures."""
    keys = {case: f"fidelity, {mark}, {case.name}" for case in cases}
    missing = [case for case, key in keys.items() if key not in journal.entries]
    futures = {pool.submit(_quality, case): case for case in missing}
    with tqdm(total=len(keys), initial=len(keys) - len(missing), desc="fidelity", unit="case") as bar:
        for future in as_completed(futures):
            journal.add(keys[futures[future]], future.result())
            bar.update()
    return {case.name: journal.entries[key] for case, key in keys.items()}


def run(
    steps: int, pictures: int, arguments: argparse.Namespace, journal: Journal, times: dict[tuple[int, str], Any]
) -> dict[str, Any]:
    """Everything that is compared with the full run of `steps` steps, given the times."""
    equal = {
        (batch, case.name): plain_at_equal_time(case, batch, times)
        for batch in arguments.timed_batches
        for case in accelerated(steps)
    }
    mark = f"weights {weights()}, seed {arguments.seed}, {pictures} pictures"
    spawn = multiprocessing.get_context("spawn")
    start = (pictures, arguments.seed, arguments.batch)
    with ProcessPoolExecutor(arguments.jobs, spawn, _start, start) as pool:
        quality = measure_quality([full(steps), *accelerated(steps)], pool, journal, mark)
        counts = {round(measured["computed"]) for measured in quality.values()} - {steps}
        counts |= {plain.run for plain in equal.values() if plain is not None}
        quality |= measure_quality([Case(steps, FEWER, n) for n in sorted(counts)], pool, journal, mark)
    return assemble(steps, quality, times, equal, arguments.timed_batches)


def weights() -> str:
    """Twelve hexadecimal digits that change with the weights of the bundled pipeline."""
    digest = hashlib.sha256()
    for path in sorted(bundled.path().rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def parse() -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[28, 50], help="steps of the full runs")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[256], help="pictures, one number or one per full run"
    )
    parser.add_argument("--batch", type=int, default=64, help="pictures a call where fidelity is measured")
    parser.add_argument("--timed-batches", type=int, nargs="+", default=[1, 16], help="pictures a call that is timed")
    parser.add_argument("--rounds", type=int, nargs="+", default=[7, 5], help="timings of each case, by timed batch")
    parser.add_argument("--jobs", type=int, default=1, help="processes that measure fidelity; one alone takes times")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    for name, other in (("prompts", "steps"), ("rounds", "timed_batches")):
        given, needed = getattr(arguments, name), len(getattr(arguments, other))
        if len(given) not in (1, needed):
            parser.error(f"--{name} takes one number, or one for each of --{other.replace('_', '-')}")
        setattr(arguments, name, given * needed if len(given) == 1 else given)
    counts = [*arguments.prompts, *arguments.timed_batches, *arguments.rounds, arguments.batch, arguments.jobs]
    if min(arguments.steps) < 10 or min(counts) < 1:
        parser.error("--steps must be at least 10, and all other counts at least 1")
    if not arguments.output.parent.is_dir():
        parser.error(f"the folder {arguments.output.parent} does not exist")
    return arguments


def main() -> None:
    """The command line."""
    arguments = parse()
    journal = Journal(arguments.output.with_suffix(".parts.jsonl"))
    rounds = dict(zip(arguments.timed_batches, arguments.rounds, strict=True))
    timer = Timer(Bench(max(arguments.timed_batches), arguments.seed, arguments.batch), journal, rounds)
    times = [timer.all(steps, arguments.timed_batches) for steps in arguments.steps]
    settings = {
        "weights": weights(),
        "call": bundled.call_defaults(),
        "seed": arguments.seed,
        "batch": arguments.batch,
        "rounds": rounds,
        "threads": 1,
        "times": "of this network's configuration; its weights do not enter, so times are kept when only they change",
        "ratio": "processor time over that of the full run, median over rounds of the ratio in each round",
    }
    runs = [
        run(steps, pictures, arguments, journal, measured)
        for steps, pictures, measured in zip(arguments.steps, arguments.prompts, times, strict=True)
    ]
    result = {**environment("python " + " ".join(sys.argv)), "settings": settings, "runs": runs}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    journal.path.unlink()


if __name__ == "__main__":
    main()
