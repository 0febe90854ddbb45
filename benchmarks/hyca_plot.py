"""What HyCa does on the bundled pipeline: solvers by dimension, forecasts of single dimensions, errors by interval.

python benchmarks/hyca_plot.py benchmarks/feature_error.json docs/hyca.png

Solvers and errors are read from what feature_error.py wrote. The trajectories are of one held-out picture, drawn here.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from feature_error import HELD_OUT_SEED, WARMUP, Rule, calibrate, rules, weights
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from diffaccel import Plan
from diffaccel.descriptors import KINDS
from diffaccel.feature import Feature
from diffaccel.moments import Moments
from diffaccel.pipelines import bundled, image
from diffaccel.sites import sites

STEPS, LEAF, SHOWN, INTERVAL = 28, 1, (3, 4, 6), 6  # the intervals of the strips, and that of the trajectories
SIZE, DPI = (12.5, 5.8), 144  # inches, pixels an inch
GAP = 1.5  # between clusters, in dimensions

# Colours that stay apart for colour-blind readers (Okabe and Ito). Solvers by the weight a of the newest slope.
SOLVERS = {
    "reuse": "#000000",
    "rk2": "#CC79A7",
    "tf1": "#56B4E9",
    "am3": "#E69F00",
    "ab2": "#D55E00",
    "bdf2_extrapolated": "#009E73",
}
FORECASTS = {  # name in feature_error.py: label, colour, marker
    "Taylor 2": ("TaylorSeer, order 2", "#D55E00", "o"),
    "HyCa C=4": ("HyCa, 4 clusters", "#0072B2", "s"),
    "Fitted one group, 3 anchors": ("Fitted, 3 anchors", "#009E73", "^"),
}
ERRORS = {
    "reuse": ("reuse", "#000000", "x"),
    "Taylor 1": ("TaylorSeer, order 1", "#E69F00", "D"),
    **FORECASTS,
    "Fitted each dimension, 3 anchors": ("Fitted, each dimension", "#CC79A7", "P"),
}
GREY = "#777777"
HOLLOW = {"mfc": "none", "ms": 7}  # for what another rule may cover
FILLED = {"ms": 3.5}


def strips(figure: SubFigure, choice: Mapping[str, Any]) -> None:
    """By interval, the solver of each dimension: its own best, what its cluster has, and the shares of both."""
    labels = choice["labels"]
    clusters = [cluster for cluster, _ in Counter(labels).most_common()]
    panels = figure.subplots(len(SHOWN), 1, gridspec_kw={"hspace": 0.75})
    for axes, interval in zip(panels, SHOWN, strict=True):
        found = choice["intervals"][str(interval)]
        own, shared = found["dimensions"], [found["clusters"][c] for c in labels]
        for line, solvers in enumerate((own, shared)):
            strip(axes, line, [[solvers[d] for d in range(len(labels)) if labels[d] == c] for c in clusters])
        axes.set_yticks([0.45, 1.45], ["own best", "HyCa"], fontsize=8)
        axes.set_ylim(2, 0)
        axes.set_xlim(0, len(labels) + GAP * (len(clusters) - 1))
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(f"interval {interval}", fontsize=8.5, loc="left", pad=3)
        text = f"own best: {shares(own)}\nHyCa: {shares(shared)}"
        axes.text(0, -0.02, text, transform=axes.transAxes, fontsize=7.5, va="top", linespacing=1.3)
    sizes = ", ".join(str(labels.count(c)) for c in clusters)
    figure.suptitle(f"Solvers, by cluster of {sizes} dimensions", fontsize=10, y=0.96)
    handles = [Patch(color=colour, label=name.replace("_extrapolated", "")) for name, colour in SOLVERS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=6, frameon=False, fontsize=8, handlelength=1)


def strip(axes: Axes, line: int, solvers: Sequence[Sequence[str]]) -> None:
    """One row of dimensions, cluster by cluster with a gap in between, sorted by solver within each."""
    left = 0.0
    for cluster in solvers:
        for name, colour in SOLVERS.items():
            width = cluster.count(name)
            axes.broken_barh([(left, width)], (line, 0.9), facecolor=colour, linewidth=0)
            left += width
        left += GAP


def shares(solvers: Sequence[str]) -> str:
    """Share of dimensions by solver, the most frequent first."""
    counts = Counter(solvers).most_common()
    return ", ".join(f"{name.replace('_extrapolated', '')} {100 * n / len(solvers):.0f}%" for name, n in counts)


def series(pipe: Any) -> torch.Tensor:
    """The feature of one held-out picture in a full run, branch of the prompt, shape (steps, tokens, dims)."""
    kept: list[torch.Tensor] = []
    owner = sites(pipe.transformer, "model")[0].owner
    hook = owner.register_forward_hook(lambda module, args, output: kept.append(Feature(output).leaves[LEAF][0]))
    try:
        image.pictures(pipe, bundled.prompts("held-out")[:1], [HELD_OUT_SEED], STEPS)
    finally:
        hook.remove()
    branches = len(kept) // STEPS  # with guidance the prompt's own comes first
    return torch.stack(kept[::branches]).double()


def examples(moments: Moments) -> dict[str, int]:
    """A slow, a fast and a bent dimension by the descriptors that HyCa clusters by."""
    kinds = dict(zip(KINDS, moments.descriptors.mean(0), strict=True))
    return {
        "slow: smallest first difference": int(kinds["first_difference"].argmin()),
        "fast: largest first difference": int(kinds["first_difference"].argmax()),
        "bent: largest curvature ratio": int(kinds["curvature_ratio"].argmax()),
    }


def trajectories(figure: SubFigure, values: torch.Tensor, moments: Moments, forecasts: Mapping[str, Rule]) -> None:
    """Three dimensions of one token along a full run, and their forecasts in between."""
    plan = Plan.every(INTERVAL, STEPS, WARMUP, last=True)
    token = int(values.diff(dim=0).square().sum((0, 2)).argsort()[values.shape[1] // 2])  # of median motion
    panels = figure.subplots(3, 1, sharex=True, gridspec_kw={"hspace": 0.3})
    for axes, (title, dim) in zip(panels, examples(moments).items(), strict=True):
        one = values[:, token, dim]
        axes.plot(one, color=GREY, lw=2.5, alpha=0.55, label="full run")
        computed = plan.computed()
        axes.plot(computed, one[computed], "o", color="black", ms=4.5, label="computed step", zorder=5)
        for rule, (label, colour, marker) in FORECASTS.items():
            for start, end in pairwise(computed):
                between = range(start + 1, end)
                anchors = [a for a in computed if a <= start][::-1][: forecasts[rule].order + 1]
                points = [float(row(forecasts[rule], anchors, s, dim) @ one[anchors]) for s in between]
                style = {"color": colour, "marker": marker, "lw": 1, "markevery": slice(1, None), **size(rule)}
                axes.plot([start, *between], [one[start], *points], label=label, **style)
        axes.set_title(f"{title} (dimension {dim})", fontsize=8.5, loc="left", pad=3)
        axes.tick_params(labelsize=8)
        axes.grid(color="#e5e5e5", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("step", fontsize=9)
    figure.suptitle(f"Forecasts along one token, interval {INTERVAL}", fontsize=10, y=0.96)
    handles = [
        Line2D([], [], color=GREY, lw=2.5, alpha=0.55, label="full run"),
        Line2D([], [], color="black", marker="o", ls="", ms=4.5, label="computed step"),
        *(
            Line2D([], [], color=c, marker=m, lw=1, label=label, **size(rule))
            for rule, (label, c, m) in FORECASTS.items()
        ),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=8, columnspacing=1.2)


def size(rule: str) -> dict[str, Any]:
    """Markers of a rule: TaylorSeer's are large and hollow, so that those on top of them do not hide them."""
    return HOLLOW if rule.startswith("Taylor") else FILLED


def row(rule: Rule, anchors: Sequence[int], target: int, dim: int) -> torch.Tensor:
    """Weights of a rule on anchors for one dimension, shape (anchors,)."""
    found = weights(rule, LEAF, anchors, target)
    return found if found.ndim == 1 else found[:, dim]


def by_interval(figure: SubFigure, rows: Sequence[Mapping[str, Any]]) -> None:
    """Relative error of the main rules at each interval: all skipped steps above, those with even anchors below."""
    panels = figure.subplots(2, 1, sharex=True, gridspec_kw={"hspace": 0.3})
    titles = {"all": "all skipped steps", "even": "those with evenly spaced anchors"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        for rule, (label, colour, marker) in ERRORS.items():
            here = [r for r in rows if (r["rule"], r["steps"], r["leaf"]) == (rule, STEPS, LEAF)]
            x, y = [r["interval"] for r in here], [100 * r[kind]["mean"] for r in here]
            low, high = ([100 * r[kind][end] for r in here] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
            axes.plot(x, y, color=colour, marker=marker, lw=1.2, label=label, **size(rule))
        axes.set_title(title, fontsize=8.5, loc="left", pad=3)
        axes.set_ylabel("error (% of the feature)", fontsize=8.5)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.grid(color="#e5e5e5", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("interval", fontsize=9)
    figure.suptitle("Error of the forecast feature, held-out prompts", fontsize=10, y=0.96)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=2, frameon=False, fontsize=8, columnspacing=1.2)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="JSON file written by feature_error.py")
    parser.add_argument("picture", type=Path, help="file to write, PNG or SVG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(arguments.result.read_text())
    choice = next(c for c in result["solvers"] if (c["steps"], c["leaf"]) == (STEPS, LEAF))
    pipe = image.load()
    pipe.set_progress_bar_config(leave=False)
    trace = calibrate(pipe, STEPS)
    site = sites(pipe.transformer, "model")[0]
    forecasts = {name: rule for name, rule in rules(site, trace, INTERVAL) if name in FORECASTS}
    figure = Figure(figsize=SIZE, dpi=DPI)
    FigureCanvasAgg(figure)
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1.05, 1.05, 0.9))
    strips(left, choice)
    trajectories(middle, series(pipe), trace.networks["transformer"][site.name][LEAF], forecasts)
    by_interval(right, result["errors"])
    for part, edges in ((left, (0.15, 0.97)), (middle, (0.12, 0.97)), (right, (0.15, 0.97))):
        part.subplots_adjust(left=edges[0], right=edges[1], top=0.88, bottom=0.21)
    figure.savefig(arguments.picture, facecolor="white")
    print(f"{arguments.picture}: {arguments.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
