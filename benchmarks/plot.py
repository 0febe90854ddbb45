"""The trade-off of a recorded benchmark: fidelity against measured speed-up, one panel per full run.

python benchmarks/plot.py benchmarks/taylorseer_flux.json docs/trade_off.png
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

from diffaccel.evaluation.labels import Point
from diffaccel.evaluation.plot import front

# Colours that stay apart for colour-blind readers (Okabe and Ito), and a marker each.
STYLES: dict[str, tuple[str, str, str]] = {
    "fewer steps": ("#555555", "o", "fewer steps, no cache"),
    "sublayer": ("#0072B2", "s", "diffaccel, level sublayer"),
    "block": ("#009E73", "^", "diffaccel, level block"),
    "model": ("#D55E00", "D", "diffaccel, level model"),
    "diffusers, default": ("#CC79A7", "x", "diffusers' cache, as it comes"),
    "diffusers, all sublayers": ("#CC79A7", "v", "diffusers' cache, all sublayers"),
    "diffusers, lite": ("#CC79A7", "P", "diffusers' cache, lite"),
}
NAMED = "model"  # the family whose points are named


def panel(axes: Axes, run: Mapping[str, Any], batch: str) -> None:
    """All cases that were compared with one full run; lines join those of a family that no other of it beats."""
    every: list[Point] = []
    for family, (colour, marker, label) in STYLES.items():
        cases = [case for case in run["cases"] if case["family"] == family and batch in case["time"]]
        points = {(case["time"][batch]["speed_up"], case["psnr"]["mean"]): case for case in cases}
        if not points:
            continue
        best = front(list(points))
        every += points
        if rest := [point for point in points if point not in best]:
            axes.scatter(*zip(*rest, strict=True), s=14, color=colour, marker=marker, alpha=0.25, linewidths=1)
        axes.plot(*zip(*best, strict=True), color=colour, marker=marker, ms=5, lw=1.2, label=label)
        for point in apart(best) if family == NAMED else []:
            axes.annotate(short(points[point]), point, (6, 4), textcoords="offset points", fontsize=7, color=colour)
    axes.plot(*zip(*front(every), strict=True), color="#F0E442", lw=8, alpha=0.6, zorder=0, label="Pareto front")
    axes.set_title(f"full run of {run['steps']} steps, {run['pictures']} pictures", fontsize=10)
    axes.set_xlabel(f"measured speed-up of denoising, batch {batch}")
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def apart(points: Sequence[Point], faster: float = 0.4, closer: float = 2.0) -> list[Point]:
    """Those points of a front whose names do not run into the name before: so much faster, or so many dB lower."""
    result: list[Point] = []
    for point in points:
        if not result or point[0] > result[-1][0] + faster or point[1] < result[-1][1] - closer:
            result.append(point)
    return result


def short(case: Mapping[str, Any]) -> str:
    """Interval and order, and the forecast where it is not Taylor's."""
    return f"N={case['interval']} O={case['order']}" + (" newton" if case["forecast"] == "newton" else "")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="JSON file written by taylorseer_flux.py")
    parser.add_argument("picture", type=Path, help="file to write, PNG or SVG")
    parser.add_argument("--batch", default=None, help="pictures a call that was timed; the largest unless given")
    arguments = parser.parse_args()
    runs = json.loads(arguments.result.read_text())["runs"]
    mpl.use("Agg")
    figure, panels = plt.subplots(1, len(runs), figsize=(6 * len(runs), 5), squeeze=False, sharey=True)
    for axes, run in zip(panels[0], runs, strict=True):
        panel(axes, run, arguments.batch or max(run["full"]["seconds"], key=int))
    panels[0][0].set_ylabel("PSNR to the full run, dB")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2 * len(runs), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.12 if len(runs) > 1 else 0.2, 1, 1))
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, dpi=160, facecolor="white")


if __name__ == "__main__":
    main()
