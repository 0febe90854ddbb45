"""Tables of `policy.py`, so that no number is ever typed by hand.

python benchmarks/policy_table.py benchmarks/policy_drawer_open.json benchmarks/policy_pick_place.json --into README.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from table import percent_of, publish, rows

Entry = Mapping[str, Any]
BEGIN, END = "<!-- policy:begin -->", "<!-- policy:end -->"


COLUMNS: Mapping[str, Callable[[Entry], str]] = {
    "policy": lambda cell: cell["name"],
    "success": lambda cell: share(cell["success"]),
    "less than full": lambda cell: against(cell["against_full"]),
    "action error": lambda cell: "-" if cell["error"] is None else between(cell["error"]),
    "median": lambda cell: "-" if cell["error"] is None else f"{cell['error_median']:.4f}",
    "ms a decision": lambda cell: f"{cell['milliseconds']:.1f}",
    "speed-up": lambda cell: speed_up(cell),
    "of its bound": lambda cell: percent_of(cell["bound_reached"]),
    "GFLOP": lambda cell: f"{cell['flops'] / 1e9:.2f}",
    "updates": lambda cell: f"{cell['updates']:.1f}",
    "most successful plain run in its time": lambda cell: "" if cell["method"] is None else plain_in_time(cell),
    "nearest plain run in its time": lambda cell: nearest_in_time(cell),
}
BRIEF = ("policy", "success", "action error", "median", "ms a decision", "speed-up", "of its bound", "updates")


def policy_table(cells: Sequence[Entry], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """One row per cell; what is said of plain runs in its time is of cached ones only."""
    return rows([list(columns), *([COLUMNS[column](cell) for column in columns] for cell in cells)])


def speed_up(cell: Entry) -> str:
    """The median speed-up, with the least and the most of a round."""
    low, high = min(cell["time"]["ratios"]), max(cell["time"]["ratios"])
    return f"{cell['speed_up']:.1f}x ({1 / high:.1f}-{1 / low:.1f})"


def share(value: Mapping[str, float]) -> str:
    """A share with its interval in percent, such as `87% (82-91)`."""
    return f"{100 * value['value']:.0f}% ({100 * value['low']:.0f}-{100 * value['high']:.0f})"


def between(value: Mapping[str, float]) -> str:
    """A mean with its interval, such as `.012 (.010-.015)`."""
    return f"{value['value']:.4f} ({value['low']:.4f}-{value['high']:.4f})"


def against(pairs: Entry) -> str:
    """A paired difference in percent, its interval, and McNemar's p where it is small."""
    value = pairs["difference"]
    clear = f", p = {pairs['p']:.1g}" if pairs["p"] < 0.05 else ""
    return f"{100 * value['value']:+.0f} ({100 * value['low']:+.0f} to {100 * value['high']:+.0f}){clear}"


def plain_in_time(cell: Entry) -> str:
    """The best plain run that takes no longer, and how much better the cell is."""
    other = cell.get("equal_time")
    return "none" if other is None else f"{other['name']}: {against(other)}"


def nearest_in_time(cell: Entry) -> str:
    """The plain run of least error that takes no longer, and the errors of the cell as shares of its own."""
    if (other := cell.get("equal_time_error")) is None:
        return ""
    value = other["difference"]
    told = "" if value["low"] <= 0 <= value["high"] else " **nearer**" if value["high"] < 0 else " farther"
    return f"{other['name']}: error {other['ratio']:.2f} of its{told}"


def provenance(result: Entry) -> str:
    """What the numbers of a table are and where they come from."""
    machine, versions, settings = result["machine"], result["versions"], result["settings"]
    return (
        f"{settings['episodes']} episodes of {settings['task']} (MetaWorld {versions['metaworld']}) for each, with "
        "equal starts and noise; differences are paired, in percent of the episodes. Action error is the root mean "
        f"square over the executed actions of {settings['observations']} held-out observations, in units of the "
        "normalizer (-1..1), from the same noise: of DDPM to DDPM with 100 steps, of all others to DDIM with 100; mean "
        "and median over observations. "
        "Intervals are 95%. Time is processor time of one decision at batch 1 on one thread, median of "
        f"{settings['rounds']} rounds, speed-ups with the least and most of a round ({machine['cpu']}, torch "
        f"{versions['torch']}, diffusers {versions['diffusers']}, "
        f"{result['date'][:10]}). Recorded by `{result['command'].partition(' --cells')[0]}`."
    )


def selected(cells: Sequence[Entry], patterns: Sequence[str]) -> list[Entry]:
    """The cells whose names match one of the patterns, in their order."""
    return [cell for cell in cells if any(fnmatch(cell["name"], pattern) for pattern in patterns)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files written by policy.py")
    parser.add_argument("--cells", nargs="+", default=["*"], help="names of cells, or patterns such as 'ddim-*'")
    parser.add_argument("--brief", action="store_true", help=f"only {', '.join(BRIEF)}")
    parser.add_argument("--into", type=Path, help=f"document that takes the tables, between {BEGIN} and {END}")
    arguments = parser.parse_args()
    parts = []
    for result in (json.loads(path.read_text()) for path in arguments.results):
        parts += [
            provenance(result),
            policy_table(selected(result["cells"], arguments.cells), BRIEF if arguments.brief else tuple(COLUMNS)),
        ]
    text = "\n\n".join(parts)
    publish(text, arguments.into, BEGIN, END)


if __name__ == "__main__":
    main()
