"""Diffusion policies in closed loop: success, action error and time, without and with caches.

    python benchmarks/policy.py --task drawer-open --output benchmarks/policy_drawer_open.json
    python benchmarks/policy.py --task pick-place --output runs/few.json --episodes 4 --cells ddpm-100 ddim-10

Each cell runs the same episodes from the same starts with the same noise. Errors are root mean squares over the
executed actions of held-out observations, in units of the normalizer (-1..1), from the same noise: of DDPM to DDPM
with 100 steps, of all others, which are deterministic, to DDIM with 100 steps. Time is processor time of one decision
at batch 1 on one thread, taken in turn with the full run; operations are those of all matrix products of a decision.

Every cell is kept under runs/ when it is done: start the same command again to go on, or to add cells.
`policy_table.py` shows the result, `policy_plot.py` draws it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import Journal
from policy_bench import Bench
from policy_cells import CELLS, FULL, Cell
from policy_results import assemble
from results import environment
from tqdm.auto import tqdm

from diffaccel.pipelines import bundled

GROUP = 5
"""Cells that are timed in turn with one full run."""


def chosen(patterns: Sequence[str] | None) -> list[Cell]:
    """The cells whose names match one of the patterns, the full run first; all of them without a pattern.

    Raises:
        SystemExit: nothing matches a pattern.
    """
    for pattern in patterns or ():
        if not any(fnmatch(name, pattern) for name in CELLS):
            raise SystemExit(f"no cell is called {pattern!r}; there are:\n" + "\n".join(CELLS))
    wanted = [cell for name, cell in CELLS.items() if patterns is None or any(fnmatch(name, p) for p in patterns)]
    return [FULL, *(cell for cell in wanted if cell != FULL)]


def measure(bench: Bench, cells: Sequence[Cell], journal: Journal, arguments: argparse.Namespace) -> dict[str, str]:
    """Measure what the journal lacks. Returns what was refused, by name of the cell."""
    refused: dict[str, str] = {}
    with tqdm(cells, desc=f"{arguments.task}, episodes", unit="cell") as bar:
        for cell in bar:
            bar.set_postfix_str(cell.name)
            if lacking(journal, f"closed loop, {cell.name}", arguments.anew):
                try:
                    journal.add(f"closed loop, {cell.name}", bench.measure(cell, arguments.episodes))
                except (TypeError, ValueError) as error:
                    refused[cell.name] = f"{type(error).__name__}: {error}"
    due = [c for c in cells if c.name not in refused and lacking(journal, f"time, {c.name}", arguments.anew)]
    for start in tqdm(range(0, len(due), GROUP), desc=f"{arguments.task}, times", unit="group"):
        timed = bench.times(due[start : start + GROUP], arguments.rounds, arguments.queries)
        for name, timing in timed.items():
            journal.add(f"time, {name}", timing)
    return refused


def lacking(journal: Journal, key: str, anew: bool) -> bool:
    """Whether something has to be measured."""
    return anew or key not in journal.entries


def parse() -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(bundled.POLICIES), required=True)
    parser.add_argument("--policy", type=Path, help="folder that export.py wrote; the bundled policy unless given")
    parser.add_argument("--cells", nargs="+", help="names of cells, or patterns such as 'ddim-*'; all unless given")
    parser.add_argument("--episodes", type=int, default=100, help="of each cell")
    parser.add_argument("--worlds", type=int, default=50, help="episodes that run at once")
    parser.add_argument("--observations", type=int, default=64, help="held-out decisions whose errors are measured")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each cell")
    parser.add_argument("--queries", type=int, default=3, help="decisions of each timing")
    parser.add_argument("--anew", action="store_true", help="measure the cells again that were measured before")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    if min(getattr(arguments, name) for name in ("episodes", "worlds", "observations", "rounds", "queries")) < 1:
        parser.error("all counts must be at least 1")
    if not arguments.output.parent.is_dir():
        parser.error(f"the folder {arguments.output.parent} does not exist")
    return arguments


def settings(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a journal's measurements have in common."""
    counts = ("task", "episodes", "observations", "rounds", "queries")
    return {**{name: getattr(arguments, name) for name in counts}, "weights": bench.fingerprint, "threads": 1}


def main() -> None:
    """The command line."""
    arguments = parse()
    cells = chosen(arguments.cells)
    policy = bundled.policy(arguments.task, arguments.policy)
    learnable = bundled.policy_observations(arguments.task, arguments.policy)
    bench = Bench(arguments.task, policy, learnable, arguments.observations, arguments.worlds)
    common = settings(bench, arguments)
    place = Path("runs", "policy") / ("-".join(str(value) for value in common.values()) + ".jsonl")
    place.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(place)
    refused = measure(bench, cells, journal, arguments)
    found = assemble(journal.entries, list(CELLS.values()))
    result = {**environment("python " + shlex.join(sys.argv)), "settings": common, **found}
    result["versions"] |= {name: version(name) for name in ("metaworld", "mujoco")}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if refused:
        raise SystemExit("\n".join(["not measured:", *(f"{name}: {why}" for name, why in refused.items())]))


if __name__ == "__main__":
    main()
