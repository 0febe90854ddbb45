"""How much of the change of Dash's estimate trained Dots explain, by the gap they bridge and where they arrive.

    python benchmarks/morse_power.py --pipeline ddpm-digits --dots runs/dots/small --output benchmarks/power_ddpm.json

Explained power is 1 - E|change - Dot|^2 / E|change|^2: 0 is a Dot that says nothing, below 0 it does harm. Twice for
each Dot: on pairs as the paper trains on, of any two times and one jump between them (`uniform`), and on the Dot steps
of real runs of each plan, where Dash is asked what it would have said (`ddim 3+6`). Noise and pictures are other ones
than in training. `--table` prints a recorded file as Markdown.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from morse import plan
from morse_cells import BETTER_SOLVER, FIRST, PIPELINES, SOLVERS, Cell
from morse_subject import digest
from results import environment
from table import publish, rows
from torch.utils.data import default_collate
from tqdm.auto import tqdm

from diffaccel.morse.coordinates import FLOW, Coordinates
from diffaccel.morse.dot import MorseDot
from diffaccel.morse.pairs import Pair
from diffaccel.morse.power import Explained, Power
from diffaccel.morse.probe import only_network, probe
from diffaccel.morse.renders import BundledRenders
from diffaccel.morse.sources import Calls, Drawn, Rolled
from diffaccel.pipelines import bundled

SEED = 7_000
"""Of pictures and noise; trainings use small ones."""
PLANS = ((2, 4), (3, 6), (4, 8), (6, 12))
ARRIVALS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0))
"""Times of arrival that are told together."""
BEGIN, END = "<!-- morse-power:begin -->", "<!-- morse-power:end -->"


class Judge:
    """A bundled pipeline, and Dots on it.

    Args:
        name: of the pipeline.
        batch: pictures at once.
    """

    def __init__(self, name: str, batch: int) -> None:
        torch.set_num_threads(1)
        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()
        self.name, self.batch = name, batch
        self.pipe: Any = bundled.load(name)
        self.pipe.set_progress_bar_config(disable=True)
        self.shipped = self.pipe.scheduler
        self.renders = BundledRenders(name, seed=SEED)
        self.calls = Calls(self.pipe, {}, None)
        self.network = only_network(self.pipe)

    def use(self, solver: str) -> Coordinates:
        """Change the pipeline's scheduler, and say in which coordinates it works."""
        self.pipe.scheduler = Cell(solver, 1).scheduler(self.shipped)
        return Coordinates.of(self.pipe.scheduler, "epsilon")

    def span(self, coordinates: Coordinates) -> float:
        """All the time there is, in the network's unit."""
        if coordinates.kept != FLOW:
            return float(self.pipe.scheduler.config.num_train_timesteps)
        return probe(self.pipe, **self.calls.of(self.pictures(0, 1), torch.Generator())).time_scale

    def pictures(self, number: int, size: int) -> Mapping[str, Any]:
        """A batch of renders, always the same ones for one number."""
        return default_collate([self.renders[number * self.batch + i] for i in range(size)])

    def uniform(self, dot: MorseDot, batches: int) -> Power:
        """Over pairs of any two times (Algorithm 1 of the paper)."""
        coordinates = self.use(FIRST[self.name])
        return self._over(dot, Drawn(self.calls, coordinates, dot.config.guided, None), self.span(coordinates), batches)

    def plan(self, dot: MorseDot, solver: str, steps: tuple[int, int], batches: int) -> Power:
        """Over the Dot steps of runs of a plan."""
        coordinates = self.use(solver)
        return self._over(dot, Rolled(self.calls, dot, [steps]), self.span(coordinates), batches)

    @torch.no_grad()
    def _over(self, dot: MorseDot, source: Drawn | Rolled, span: float, batches: int) -> Power:
        power = Power(span)
        for pair in self._pairs(source, batches):
            power.add(pair, dot(pair.x, pair.t, pair.x_s, pair.k_s, pair.t_s, pair.conditioning))
        return power

    def _pairs(self, source: Drawn | Rolled, batches: int) -> Iterator[Pair]:
        for number in range(batches):
            yield from source(self.pictures(number, self.batch), torch.Generator().manual_seed(SEED + number))


def told(power: Power) -> dict[str, Any]:
    """What was explained in all, by gap, and by gap and time of arrival."""

    def bins(found: Sequence[Explained]) -> list[dict[str, Any]]:
        return [{**asdict(one), "explained": one.explained} for one in found]

    return {"explained": power.explained(), "by_gap": bins(power.by_gap()), "bins": bins(power.table())}


def measure(judge: Judge, folders: Mapping[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """All Dots, by label."""
    found: dict[str, Any] = {}
    for label, folder in tqdm(folders.items(), desc=judge.name, unit="Dot"):
        dot = MorseDot.from_pretrained(folder)
        dot.attach(judge.network)
        dot.eval()
        runs = {"uniform": told(judge.uniform(dot, arguments.batches))}
        for solver in arguments.solvers or (FIRST[judge.name], BETTER_SOLVER[judge.name]):
            for k_dash, k_dot in arguments.plans:
                # A run has k_dot pairs a picture.
                batches = max(1, round(arguments.batches / k_dot))
                runs[f"{solver} {k_dash}+{k_dot}"] = told(judge.plan(dot, solver, (k_dash, k_dot), batches))
        found[label] = {"weights": digest(folder), "config": trained(dot), "runs": runs}
    return found


def trained(dot: MorseDot) -> dict[str, Any]:
    """What a Dot is, and how it was trained."""
    names = ("kind", "m", "widths", "rank", "base", "guided", "scheduler", "pair_sampling")
    return {name: dot.config[name] for name in names}


def table(result: Mapping[str, Any]) -> str:
    """One row per Dot and kind of pairs: explained in all, by gap and by time; a bin that holds no pair is empty."""
    every = [run for dot in result["dots"].values() for run in dot["runs"].values()]
    gaps = sorted({tuple(one["gap"]) for run in every for one in run["by_gap"]})
    header = [f"gap {low:g}-{high:g}" for low, high in gaps] + [f"to {low:g}-{high:g}" for low, high in ARRIVALS]
    lines = [["Dot", "pairs", "all", *header]]
    for label, dot in result["dots"].items():
        for name, run in dot["runs"].items():
            by_gap = {tuple(one["gap"]): one["explained"] for one in run["by_gap"]}
            shown = [by_gap.get(gap) for gap in gaps] + [arriving(run["bins"], *edges) for edges in ARRIVALS]
            lines.append([label, name, f"{run['explained']:.2f}", *("" if v is None else f"{v:.2f}" for v in shown)])
    settings = result["settings"]
    head = (
        f"{settings['pipeline']}: share of the change's power that Dot explains, over {settings['pairs']} pairs of any "
        "two times, and about as many of runs; by gap, and by the time it arrives at, as shares of all time. "
        f"Recorded by `{result['command']}`."
    )
    return f"{head}\n\n{rows(lines)}"


def arriving(bins: Sequence[Mapping[str, Any]], low: float, high: float) -> float | None:
    """The share explained of the change that arrives at these times, each sample's relative to what is usual there.

    Bins count by their pairs, not by their change, of which those near clean data have nearly all.
    """
    inside = [one for one in bins if low <= one["time"][0] and one["time"][1] <= high and one["change"]]
    count = sum(one["count"] for one in inside)
    return sum(one["count"] * one["explained"] for one in inside) / count if count else None


def parse() -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", choices=PIPELINES)
    parser.add_argument(
        "--dots", nargs="+", type=Path, default=[], help="folders of trained Dots; their names are labels"
    )
    parser.add_argument("--plans", nargs="+", type=plan, default=list(PLANS), help="Dash and Dot steps, such as 3,6")
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), help="of the runs")
    parser.add_argument("--batch", type=int, default=64, help="pictures at once")
    parser.add_argument("--batches", type=int, default=32, help="so many batches of pairs of each kind")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--table", type=Path, nargs="+", help="recorded files to print instead")
    parser.add_argument("--into", type=Path, help=f"document that takes the tables, between {BEGIN} and {END}")
    arguments = parser.parse_args()
    if arguments.table:
        return arguments
    if not (arguments.pipeline and arguments.dots and arguments.output):
        parser.error("give --pipeline, --dots and --output, or --table")
    if min(arguments.batch, arguments.batches) < 1:
        parser.error("--batch and --batches must be at least 1")
    if missing := [str(folder) for folder in arguments.dots if not (folder / "config.json").is_file()]:
        parser.error(f"there is no Dot in {', '.join(missing)}")
    if not arguments.output.parent.is_dir():
        parser.error(f"the folder {arguments.output.parent} does not exist")
    return arguments


def main() -> None:
    """The command line."""
    arguments = parse()
    if arguments.table:
        parts = [table(json.loads(path.read_text())) for path in arguments.table]
        publish("\n\n".join(parts), arguments.into, BEGIN, END)
        return
    judge = Judge(arguments.pipeline, arguments.batch)
    found = measure(judge, {folder.name: folder for folder in arguments.dots}, arguments)
    settings = {"pipeline": arguments.pipeline, "pairs": arguments.batch * arguments.batches, "seed": SEED}
    result = {**environment("python " + shlex.join(sys.argv)), "settings": settings, "dots": found}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
