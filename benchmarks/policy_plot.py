"""Policies in closed loop: action error and success against the time of a decision, one column per task.

python benchmarks/policy_plot.py benchmarks/policy_drawer_open.json benchmarks/policy_pick_place.json \
    docs/policy_trade_off.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Entry = Mapping[str, Any]

# Colours that stay apart for colour-blind readers (Okabe and Ito): one a method, the marker says which sampler.
COLOURS = {
    None: "#555555",
    "uniform": "#E69F00",
    "unified": "#F0E442",
    "acs": "#56B4E9",
    "bac": "#0072B2",
    "effect": "#D55E00",
    "taylorseer": "#009E73",
    "fitted": "#CC79A7",
}
MARKERS = {"ddpm": "s", "ddim": "o", "dpmsolver": "^", "dpmsolver-lu": "v"}


def families(cells: Sequence[Entry]) -> dict[tuple[str | None, str], list[Entry]]:
    """Cells by method and sampler, from the fastest on."""
    found: dict[tuple[str | None, str], list[Entry]] = {}
    for cell in sorted(cells, key=time):
        found.setdefault((cell["method"], cell["sampler"]), []).append(cell)
    return found


def time(cell: Entry) -> float:
    """Processor time of a decision in percent of the full run's in the same rounds, which slow drift leaves alone."""
    return float(100 * cell["time"]["ratio"])


def label(method: str | None, sampler: str) -> str:
    """What the legend calls a family."""
    return f"{sampler}, fewer steps" if method is None else f"{method} on {sampler}"


def error_panel(axes: Axes, cells: Sequence[Entry]) -> None:
    """Error against time, both logarithmic; runs that are their own reference have no error to show."""
    shown = [cell for cell in cells if cell["error"] is not None and cell["error"]["value"] > 0]
    for (method, sampler), family in families(shown).items():
        points = [(time(cell), cell["error"]["value"]) for cell in family]
        draw(axes, method, sampler, points)
    axes.set_yscale("log")
    axes.set_ylabel("action error to DDPM or DDIM with 100 steps")


def success_panel(axes: Axes, cells: Sequence[Entry]) -> None:
    """Success against time, with Wilson's intervals."""
    for (method, sampler), family in families(cells).items():
        points = [(time(cell), 100 * cell["success"]["value"]) for cell in family]
        draw(axes, method, sampler, points)
        for cell in family:
            ends = [100 * cell["success"]["low"], 100 * cell["success"]["high"]]
            axes.plot([time(cell)] * 2, ends, color=COLOURS.get(method, "#000000"), lw=0.7, alpha=0.4)
    axes.set_ylabel("success, %")
    full = next(cell for cell in cells if cell["name"] == "ddpm-100")
    axes.set_xlabel(f"processor time of a decision, % of {full['name']} ({full['milliseconds']:.0f} ms)")


def draw(axes: Axes, method: str | None, sampler: str, points: Sequence[tuple[float, float]]) -> None:
    """One family: plain runs by a line, methods by points, whose settings differ in more than one way."""
    style = {"color": COLOURS.get(method, "#000000"), "marker": MARKERS[sampler], "ms": 5}
    axes.plot(*zip(*points, strict=True), lw=1.2 if method is None else 0, label=label(method, sampler), **style)


def dress(axes: Axes) -> None:
    """A logarithmic time axis, a quiet grid, no box."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files written by policy.py")
    parser.add_argument("picture", type=Path, help="file to write, PNG or SVG")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text()) for path in arguments.results]
    mpl.use("Agg")
    figure, panels = plt.subplots(2, len(results), figsize=(6 * len(results), 8.5), squeeze=False, sharex="col")
    labels: dict[str, Any] = {}
    for (above, below), result in zip(panels.T, results, strict=True):
        settings = result["settings"]
        error_panel(above, result["cells"])
        success_panel(below, result["cells"])
        above.set_title(f"{settings['task']}, {settings['episodes']} episodes each", fontsize=10)
        for axes in (above, below):
            dress(axes)
            labels |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels, loc="lower center", ncols=2 + len(results), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.02 + 0.03 * -(-len(labels) // (2 + len(results))), 1, 1))
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, dpi=160, facecolor="white")


if __name__ == "__main__":
    main()
