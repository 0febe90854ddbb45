"""Which rows each cache computes on one problem, and right answers against rows over all of them.

python benchmarks/text_plot.py benchmarks/text_quality.json docs/text.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator
from text_cells import RANDOM, Cell

from diffaccel.pipelines import bundled
from diffaccel.pipelines.text import TextDiffusionPipeline

# Colours that stay apart for colour-blind readers (Okabe and Ito); plain runs are black.
FAMILIES = {
    "plain": ("#000000", "fewer steps"),
    "dkv refresh": ("#D55E00", "dkv decode"),
    "dkv variant=interval": ("#0072B2", "dkv interval"),
    "dkv variant=p": ("#E69F00", "dkv prefill, pd"),
    "without_delay": ("#CC79A7", "decode without its delay"),
    "fast_dllm cache=None": ("#999999", "threshold, factor"),
    "fast_dllm cache=": ("#009E73", "fast_dllm caches"),
}
MAPS = {
    "dkv decode, refresh=8": Cell("dkv", {"refresh": 8}),
    "dkv interval, refresh=8": Cell("dkv", {"variant": "interval", "refresh": 8}),
    "fast_dllm dual": Cell("fast_dllm", {"cache": "dual", "threshold": None}),
    "dkv greedy, refresh=2, window=4": Cell("dkv", {"variant": "greedy"}, call=RANDOM),
}
PANELS = {"totals": "running totals", "chain": "sums modulo 4", "sorting": "sorting"}


def rows(pipe: TextDiffusionPipeline, cell: Cell, prompt: str, tokens: int) -> np.ndarray:
    """Rows computed at each step of one problem, shape (steps, positions)."""
    with cell.attached(pipe):
        table = pipe(prompt, generator=torch.Generator().manual_seed(0), **cell.arguments(tokens)).report.table
    return np.stack([table.rows(step) for step in range(len(table.computed))])


def draw_map(axis: Axes, name: str, computed: np.ndarray, prompt: int) -> None:
    """One cache on one problem: dark where a row is computed, pale where it is reused."""
    axis.imshow(computed, cmap=ListedColormap(["#e3e6ea", "#33415c"]), aspect="auto", interpolation="nearest")
    axis.axvline(prompt - 0.5, color="#D55E00", lw=1.2)
    axis.set_title(f"{name}\n{computed.mean():.0%} of the rows", fontsize=8.5)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("position; the answer begins at the line")
    axis.set_ylabel("forward")


def draw_cells(axis: Axes, kind: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Right answers against rows, a point a cell, joined within a family."""
    for start, (colour, label) in FAMILIES.items():
        own = [entry for entry in entries if family(entry["cell"]) == start]
        own.sort(key=lambda entry: -entry["row_bound"])
        share = [1 / entry["row_bound"] for entry in own]
        right = [entry["right"]["mean"] for entry in own]
        low = [entry["right"]["mean"] - entry["right"]["low"] for entry in own]
        high = [entry["right"]["high"] - entry["right"]["mean"] for entry in own]
        axis.errorbar(share, right, (low, high), color=colour, label=label, marker="o", ms=4, lw=1, elinewidth=0.6)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("rows computed, of the plain run's")
    axis.set_ylabel("right answers")
    axis.set_title(PANELS[kind], fontsize=9)
    axis.grid(alpha=0.3)


def family(cell: str) -> str | None:
    """The first family whose name a cell's begins with; random orders and SparseD are not drawn."""
    if "random" in cell:
        return None
    return next((start for start in FAMILIES if cell.startswith(start)), None)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="JSON file written by text_quality.py")
    parser.add_argument("output", type=Path, help="picture to write")
    arguments = parser.parse_args()
    tasks = json.loads(arguments.result.read_text())["tasks"]
    pipe = bundled.text()
    pipe.set_progress_bar_config(disable=True)
    problem = bundled.text_problems("totals", 1)[0]
    prompt = len(pipe.tokenizer(problem.prompt)["input_ids"])
    mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(11, 6.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    for axis, (name, cell) in zip(above.subplots(1, len(MAPS)), MAPS.items(), strict=True):
        draw_map(axis, name, rows(pipe, cell, problem.prompt, pipe.config.gen_length), prompt)
    axes = below.subplots(1, len(PANELS))
    for axis, kind in zip(axes, PANELS, strict=True):
        draw_cells(axis, kind, tasks[kind])
    below.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(FAMILIES), frameon=False)
    figure.savefig(arguments.output, dpi=130)


if __name__ == "__main__":
    main()
