"""Calibrated and uncalibrated methods beside plain runs: PSNR against measured speed-up, one panel a number of steps.

python benchmarks/calibrated_plot.py benchmarks/calibrated_28.json benchmarks/calibrated_50.json \
    --output docs/calibrated.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrated_table import INTERVALS, METHODS, named
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers (Okabe and Ito), and a marker each.
STYLES = dict(
    zip(
        METHODS,
        (("#CC79A7", "x"), ("#E69F00", "^"), ("#0072B2", "s"), ("#56B4E9", "P"), ("#009E73", "v"), ("#D55E00", "D")),
        strict=True,
    )
)
PLAIN = ("#555555", "o")


def panel(axes: Axes, result: Mapping[str, Any]) -> None:
    """All methods over their intervals, with 95% intervals, and the plain runs."""
    found = {candidate["name"]: candidate for candidate in result["candidates"]}
    for name, pattern in METHODS.items():
        line(axes, [named(found, pattern.format(N=n)) for n in INTERVALS], *STYLES[name], name)
    plain = [candidate for candidate in result["candidates"] if candidate["kind"] == "fewer"]
    line(axes, sorted(plain, key=lambda one: one["steps"]), *PLAIN, "fewer steps, no method")
    axes.set_title(f"full run of {result['request']['steps']} steps, {result['request']['num']} pictures", fontsize=10)
    axes.set_xlabel("measured speed-up of the whole pipeline, batch 16")
    axes.set_ylim(28, 69)
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def line(axes: Axes, candidates: list[Mapping[str, Any]], colour: str, marker: str, label: str) -> None:
    """One method: its points from fast to slow, joined."""
    points = sorted((one["time"]["speedup"], one["metrics"]["psnr"]) for one in candidates)
    x, y = [speed for speed, _ in points], [psnr["value"] for _, psnr in points]
    spread = [[p["value"] - p["low"] for _, p in points], [p["high"] - p["value"] for _, p in points]]
    axes.errorbar(x, y, yerr=spread, color=colour, marker=marker, ms=5, lw=1.2, elinewidth=0.8, label=label)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="results of diffaccel evaluate, see calibrated_table.py")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    arguments = parser.parse_args()
    figure = Figure(figsize=(6 * len(arguments.results), 4.8))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(arguments.results), squeeze=False, sharey=True)[0]
    for axes, path in zip(panels, arguments.results, strict=True):
        panel(axes, json.loads(path.read_text()))
    panels[0].set_ylabel("PSNR to the full run, dB")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(arguments.output, dpi=150, facecolor="white")


if __name__ == "__main__":
    main()
