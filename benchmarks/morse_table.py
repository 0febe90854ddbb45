"""Markdown tables of what `morse.py` recorded, so that no number is ever typed by hand.

python benchmarks/morse_table.py benchmarks/morse_ddpm.json --brief --into docs/morse.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from table import publish, rows

Entry = Mapping[str, Any]

BEGIN, END = "<!-- morse:begin -->", "<!-- morse:end -->"
DIGITS = {"fd_renders": 1, "fd_reference": 1, "rmse": 3, "psnr": 1, "relative_l2": 3}
TITLES = {
    "fd_renders": "FD to renders",
    "fd_reference": "FD to reference",
    "rmse": "RMSE",
    "psnr": "PSNR, dB",
    "relative_l2": "latents, relative L2",
    "exact": "exact captions",
    "legible 0.5": "legible",
    "legible 0.9": "legible, sure",
    "evenness": "evenness",
}
BRIEF = ("fd_reference", "psnr")
"""Metrics of a brief table."""


def value(found: Entry | None, metric: str) -> str:
    """Mean over seeds and standard deviation, such as `31.2 ± 0.4`."""
    if found is None:
        return "-"
    if metric not in DIGITS:
        return f"{100 * found['mean']:.0f}%"
    spread = "" if found["std"] is None else f" ± {found['std']:.{DIGITS[metric]}f}"
    return f"{found['mean']:.{DIGITS[metric]}f}{spread}"


def metrics(result: Entry, brief: bool) -> list[str]:
    """The columns there are numbers for."""
    has = {name for entry in (*result["cells"], result["reference"]) for name in entry}
    return [name for name in TITLES if name in has and (not brief or name in BRIEF)]


def cell_table(result: Entry, cells: Sequence[Entry], brief: bool = False) -> str:
    """One row per cell from the fastest on: latency, what it is worth, and the best plain run in its time."""
    columns = metrics(result, brief)
    header = ["run", "LSD", "ms a picture", *(TITLES[name] for name in columns), "best plain run in its time, by FD"]
    lines = [header]
    real = {name: {"mean": one, "std": None} for name, one in result["real"].items() if one is not None}
    for name, entry in (
        ("renders themselves", real),
        (f"reference, {result['settings']['reference']}", result["reference"]),
    ):
        lines.append([name, "", "", *(value(entry.get(column), column) for column in columns), ""])
    for cell in sorted(cells, key=lambda one: (one["lsd"] is None, one["lsd"])):
        lsd = "?" if cell["lsd"] is None else f"{cell['lsd']:.2f}".rstrip("0").rstrip(".")
        time = f"{1000 * cell['seconds']:.1f}" if "seconds" in cell else "-"
        shown = [value(cell.get(column), column) for column in columns]
        lines.append([cell["name"], lsd, time, *shown, rival(cell)])
    return rows(lines)


def rival(cell: Entry) -> str:
    """The best plain run that takes no longer by FD to the reference, and how much worse or better the cell is."""
    found = cell.get("rivals", {})
    other = found.get("seconds", found.get("lsd", {})).get("fd_reference")
    if other is None:
        return "none" if found else ""
    return f"{other['name']}: {other['difference']:+.1f}, better in {other['won']} of {other['of']}"


def speedup_table(result: Entry) -> str:
    """Mean speed-up of each curve by interpolation, and how many of its points were left out at either end."""
    found: dict[tuple[str, str, str], dict[str, Entry]] = {}
    for one in result["speedups"]:
        found.setdefault((one["family"], one["over"], one["latency"]), {})[one["metric"]] = one
    names = [name for name in TITLES if any(name in one for one in found.values())]
    lines = [["curve", "points", "over", "in", *(TITLES[name] for name in names)]]
    for (family, over, latency), by_metric in found.items():
        points = str(len(next(iter(by_metric.values()))["names"]))
        lines.append([family, points, over, latency, *(told(by_metric.get(name)) for name in names)])
    return rows(lines)


def told(one: Entry | None) -> str:
    """Such as `1.42x` or `1.42x, 1 better, 2 worse` where points were left out."""
    if one is None:
        return "-"
    mean = "-" if one["mean"] is None else f"{one['mean']:.2f}x"
    left = [f"{one[f'left_out_{end}']} {end}" for end in ("better", "worse") if one[f"left_out_{end}"]]
    return ", ".join([mean, *left])


def provenance(result: Entry) -> str:
    """What the numbers of a table are and where they come from."""
    machine, versions, settings = result["machine"], result["versions"], result["settings"]
    ratios = [f"{label} {ratio['n']:.2f}" for label, ratio in result["ratios"].items() if "n" in ratio]
    ratio = f" N measured at that batch: {', '.join(ratios)}." if ratios else ""
    return (
        f"{settings['pipeline']}: {settings['samples']} pictures for each of seeds {settings['seeds']}, from equal "
        "noise; mean ± standard deviation over seeds. FD is the squared Frechet distance of fd_digits features, "
        "to 20 000 renders of held-out handwriting, and to the reference pictures of all other seeds. RMSE "
        f"(pictures in -1..1), PSNR and relative L2 are to the reference ({settings['reference']} steps) from the "
        f"same noise. Time is processor time of denoising at batch {settings['timed_batch']} on one thread, median of "
        f"{settings['rounds']} rounds ({machine['cpu']}, torch {versions['torch']}, diffusers "
        f"{versions['diffusers']}, {result['date'][:10]}).{ratio} Recorded by `{result['command']}`."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files written by morse.py")
    parser.add_argument("--cells", nargs="+", default=["*"], help="names of cells, or patterns such as 'ddim *'")
    parser.add_argument("--brief", action="store_true", help=f"only {' and '.join(TITLES[name] for name in BRIEF)}")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--speedups", action="store_true", help="only the table of speed-ups")
    only.add_argument("--no-speedups", action="store_true", help="not the table of speed-ups")
    parser.add_argument("--into", type=Path, help=f"document that takes the tables, between {BEGIN} and {END}")
    arguments = parser.parse_args()
    parts = []
    for result in (json.loads(path.read_text()) for path in arguments.results):
        parts.append(provenance(result))
        if not arguments.speedups:
            cells = [c for c in result["cells"] if any(fnmatch(c["name"], pattern) for pattern in arguments.cells)]
            parts.append(cell_table(result, cells, arguments.brief))
        if not arguments.no_speedups:
            parts.append(speedup_table(result))
    publish("\n\n".join(parts), arguments.into, BEGIN, END)


if __name__ == "__main__":
    main()
