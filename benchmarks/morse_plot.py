"""Quality against latency as `morse.py` recorded it: one row of panels a pipeline, all axes but PSNR's logarithmic.

python benchmarks/morse_plot.py benchmarks/morse_ddpm.json benchmarks/morse_sd.json docs/morse_trade_off.png
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

# Colours that stay apart for colour-blind readers (Okabe and Ito): grey and black are plain, the rest one a method.
PLAIN = {"ddim": "#555555", "euler": "#555555", "dpm++2m": "#000000", "unipc": "#999999"}
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#B8A000")
PANELS = (("lsd", "fd_reference"), ("seconds", "fd_reference"), ("lsd", "psnr"), ("seconds", "psnr"))
LABELS = {
    "lsd": "LSD, calls of Dash",
    "seconds": "processor time of a picture, ms",
    "fd_reference": "FD to the reference of other noise",
    "psnr": "PSNR to the reference, dB",
}


def solver(cell: Entry) -> str:
    """The solver without its spacing: curves of one solver are joined where another spacing takes over."""
    return str(cell["solver"]).removeprefix("flow-").removesuffix("-trailing").removesuffix("-lu")


def curves(cells: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The cells by what the legend calls them."""
    found: dict[str, list[Entry]] = {}
    for cell in cells:
        if cell["kind"] == "plain":
            name = solver(cell)
        elif cell["kind"] == "cache":
            name = f"caches on {solver(cell)}, {cell['steps']} steps"
        else:
            name = f"{solver(cell)} + {cell['dot']}"
        found.setdefault(name, []).append(cell)
    return found


def style(name: str, cells: Sequence[Entry], others: list[str]) -> dict[str, Any]:
    """Solvers are lines, Dots are points with a colour each, filled under the first-order solver, caches crosses."""
    first = cells[0]
    if first["kind"] == "plain":
        return {
            "color": PLAIN[name],
            "lw": 1.3,
            "marker": "o",
            "ms": 3,
            "ls": "-" if name in ("ddim", "euler") else "--",
        }
    if first["kind"] == "cache":
        return {"color": "#8a7d00", "lw": 0, "marker": "x", "ms": 6}
    if first["dot"] not in others:
        others.append(first["dot"])
    under_first = solver(first) in ("ddim", "euler")
    colour = COLOURS[others.index(first["dot"]) % len(COLOURS)]
    shape = {"zero": "v", "zero-line": "^"}.get(first["dot"], "s" if under_first else "D")
    return {"color": colour, "lw": 0, "marker": shape, "ms": 6, "mfc": colour if under_first else "white"}


def panel(axes: Axes, result: Entry, latency: str, metric: str) -> None:
    """One metric over one kind of latency; the dotted line is the reference itself."""
    others: list[str] = []
    for name, cells in curves(result["cells"]).items():
        look = style(name, cells, others)
        shown = [one for one in cells if one.get(latency) is not None and metric in one]
        scale = 1000 if latency == "seconds" else 1
        points = sorted((scale * one[latency], one[metric]["mean"]) for one in shown)
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **look)
    if metric in result["reference"]:
        axes.axhline(result["reference"][metric]["mean"], color="#555555", lw=0.8, ls=":", label="reference")
    axes.set_xscale("log")
    if metric != "psnr":
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis)[: 1 if metric == "psnr" else 2]:
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(LABELS[latency])
    axes.set_ylabel(LABELS[metric])
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files written by morse.py")
    parser.add_argument("picture", type=Path, help="file to write, PNG or SVG")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text()) for path in arguments.results]
    mpl.use("Agg")
    size = (4.6 * len(PANELS), 4.1 * len(results) + 0.5)
    figure, panels = plt.subplots(len(results), len(PANELS), figsize=size, squeeze=False)
    for row, result in zip(panels, results, strict=True):
        for axes, (latency, metric) in zip(row, PANELS, strict=True):
            panel(axes, result, latency, metric)
        settings = result["settings"]
        title = f"{settings['pipeline']}, {settings['samples']} pictures for each of {len(settings['seeds'])} seeds"
        row[0].set_title(title, fontsize=10, loc="left")
        labels = {name: line for axes in row for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        beside = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5)}
        row[-1].legend(labels.values(), labels, frameon=False, fontsize=8, **beside)
    figure.tight_layout()
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.picture, dpi=140, facecolor="white")


if __name__ == "__main__":
    main()
