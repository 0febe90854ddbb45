"""The trade-off as a picture: quality against measured speed-up, a panel a metric, up and to the right is better.

matplotlib is the extra `report`. Figures are drawn without pyplot, so that no backend is chosen for the caller.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diffaccel.evaluation.contents import Result, identical
from diffaccel.evaluation.labels import Point, around, between, place
from diffaccel.evaluation.sentences import headline_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stay apart for colour-blind readers (Okabe and Ito), and a marker each.
FULL, FEWER, FRONT = ("#000000", "*"), ("#666666", "o"), "#F0E442"
METHODS = (("#D55E00", "D"), ("#0072B2", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#56B4E9", "P"), ("#E69F00", "X"))
WIDTHS, HEIGHT, DPI = {1: 7.0, 2: 10.5, 3: 13.5}, 4.75, 144  # inches by panels, inches, pixels an inch
FONT = 8.0


def front(points: Sequence[Point], better: str = "higher") -> list[Point]:
    """The points that no other point beats in both coordinates, from left to right.

    Args:
        points: speed-up (more is better) and value of each.
        better: whether "higher" or "lower" values are.
    """
    sign = 1 if better == "higher" else -1
    result: list[Point] = []
    for point in sorted(set(points), key=lambda point: (point[0], sign * point[1]), reverse=True):
        if not result or sign * point[1] > sign * result[-1][1]:
            result.append(point)
    return result[::-1]


def drawable(result: Result) -> list[Mapping[str, Any]]:
    """The metrics that get a panel: the first of pairs, of distributions, of prompts; none where nothing was timed."""
    return [metric for metric in headline_metrics(result) if _points(result, metric)]


def draw(result: Result) -> bytes:
    """The trade-off as a PNG file of `WIDTHS` by `HEIGHT` inches at `DPI`. Raises as `trade_off` does."""
    page = io.BytesIO()
    trade_off(result).savefig(page, format="png", dpi=DPI, facecolor="white")
    return page.getvalue()


def trade_off(result: Result, metric: str | None = None) -> Figure:
    """The figure.

    Args:
        result: of an evaluation.
        metric: key of the one metric to draw; None draws those of `drawable`.

    Raises:
        ImportError: there is no matplotlib.
        ValueError: there is no such metric, or no candidate has both a measured speed-up and a value of it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: pip install 'diffaccel[report]'") from error
    chosen = drawable(result) if metric is None else [m for m in result["metrics"] if m["key"] == metric]
    if not chosen or not all(_points(result, entry) for entry in chosen):
        what = "any metric" if metric is None else metric
        raise ValueError(f"nothing to draw: no candidate has a measured speed-up and a value of {what}")
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.06)
    figure = Figure(figsize=(WIDTHS[len(chosen)], HEIGHT), layout=layout, dpi=DPI)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, entry in zip(panels, chosen, strict=True):
        _panel(axes, result, entry)
    families = [family for family, _, _ in _families(result)]
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    handles = {label: handles[label] for label in sorted(handles, key=[*families, "Pareto front"].index)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2 + 2 * len(chosen), frameon=False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names must not move the axes they were placed in
    for axes, entry in zip(panels, chosen, strict=True):
        _name(axes, result, entry)
    return figure


def _points(result: Result, metric: Mapping[str, Any]) -> dict[str, Point]:
    """Where each candidate is drawn, by name; nowhere if all pictures are identical, which has no scale.

    The full run is no point where pictures are compared with its own. A candidate whose pictures are all identical to
    them has no finite value: it stands a little beyond the best that has one.
    """
    points: dict[str, Point] = {}
    for candidate in result["candidates"]:
        time, entry = candidate.get("time"), candidate["metrics"].get(metric["key"])
        if not time or not time.get("speedup") or not entry or (candidate["kind"], metric["kind"]) == ("full", "pair"):
            continue
        if identical(entry) or entry["value"] is not None:
            points[candidate["name"]] = (time["speedup"], math.inf if entry["value"] is None else entry["value"])
    finite = [value for _, value in points.values() if math.isfinite(value)]
    if not finite:
        return {}
    beyond = 0.15 * (max(finite) - min(finite)) or 1.0
    best = max(finite) + beyond if metric["better"] == "higher" else min(finite) - beyond
    return {name: (x, value if math.isfinite(value) else best) for name, (x, value) in points.items()}


def _families(result: Result) -> Iterator[tuple[str, tuple[str, str], list[Mapping[str, Any]]]]:
    """Candidates that share a colour and a marker: the full run, the plain runs of fewer steps, each kind of method."""
    families: dict[str, list[Mapping[str, Any]]] = {}
    for candidate in result["candidates"]:
        kind = (candidate.get("method") or candidate["name"]).split("(")[0].split()[0]
        family = {"full": "full run", "fewer": "fewer steps, no method"}.get(candidate["kind"], kind)
        families.setdefault(family, []).append(candidate)
    styles = iter(METHODS * len(families))
    for family, members in families.items():
        fixed = {"full": FULL, "fewer": FEWER}.get(members[0]["kind"])
        yield family, fixed or next(styles), members


def _panel(axes: Axes, result: Result, metric: Mapping[str, Any]) -> None:
    """All candidates by one metric."""
    points = _points(result, metric)
    for family, (colour, marker), members in _families(result):
        here = [candidate for candidate in members if candidate["name"] in points]
        for candidate in here:
            for ends in _bars(candidate, metric, points[candidate["name"]]):
                axes.plot(*zip(*ends, strict=True), color=colour, lw=1.3, alpha=0.6)
        if here:
            places = sorted(points[candidate["name"]] for candidate in here)
            style: dict[str, Any] = {"ms": 12 if marker == "*" else 7, "ls": ":" if marker == FEWER[1] else "", "lw": 1}
            axes.plot(*zip(*places, strict=True), color=colour, marker=marker, label=family, **style)
    best = front(list(points.values()), metric["better"])
    wide: dict[str, Any] = {"lw": 9, "marker": "o", "ms": 16, "mew": 0, "zorder": 0.5}
    axes.plot(*zip(*best, strict=True), color=FRONT, label="Pareto front", **wide)
    label = " ".join(part for part in (metric["label"], metric.get("unit")) if part)
    turned = ", so the axis is turned" if metric["better"] == "lower" else ""
    axes.set(xlabel="measured speed-up", ylabel=f"{label} ({metric['better']} is better{turned})")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.12)
    if metric["better"] == "lower":
        axes.invert_yaxis()


def _bars(candidate: Mapping[str, Any], metric: Mapping[str, Any], point: Point) -> list[tuple[Point, Point]]:
    """The ends of two lines through a point: the range of its speed-up, the interval of its value."""
    time, entry = candidate["time"], candidate["metrics"][metric["key"]]
    bars = []
    if time.get("speedup_low") is not None and time.get("speedup_high") is not None:
        bars.append(((time["speedup_low"], point[1]), (time["speedup_high"], point[1])))
    if entry.get("low") is not None and entry.get("high") is not None:
        bars.append(((point[0], entry["low"]), (point[0], entry["high"])))
    return bars


def _name(axes: Axes, result: Result, metric: Mapping[str, Any]) -> None:
    """Write the name of each point beside it, and join the two by a line where they stand apart."""
    points, scale = _points(result, metric), 72 / axes.figure.dpi  # geometry in typographic points
    candidates = [candidate for candidate in result["candidates"] if candidate["name"] in points]
    names = [c["name"] + identical(c["metrics"][metric["key"]]) * " (identical)" for c in candidates]
    places = [_on_page(axes, points[candidate["name"]], scale) for candidate in candidates]
    lines = [
        (min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)
        for candidate in candidates
        for bar in _bars(candidate, metric, points[candidate["name"]])
        for a, b in [(_on_page(axes, bar[0], scale), _on_page(axes, bar[1], scale))]
    ]
    best = [_on_page(axes, point, scale) for point in front(list(points.values()), metric["better"])]
    lines += [around(point, 3.0) for a, b in pairwise(best) for point in between(a, b)]
    extent = axes.get_window_extent()
    room = (extent.x0 * scale + 4, extent.y0 * scale + 4, extent.x1 * scale, extent.y1 * scale)
    boxes = place(places, [_size(axes, name, scale) for name in names], room, lines)
    for name, candidate, (x, y), box in zip(names, candidates, places, boxes, strict=True):
        near = max(box[0] - x, x - box[2], box[1] - y, y - box[3]) < 9
        axes.annotate(
            name,
            points[candidate["name"]],
            (box[0] - x, box[1] - y),
            textcoords="offset points",
            fontsize=FONT,
            arrowprops=None if near else {"arrowstyle": "-", "lw": 0.6, "color": "#888888", "shrinkB": 3},
        )


def _on_page(axes: Axes, point: Point, scale: float) -> Point:
    x, y = axes.transData.transform(point)
    return float(x) * scale, float(y) * scale


def _size(axes: Axes, text: str, scale: float) -> tuple[float, float]:
    """Width and height of a name."""
    probe = axes.text(0, 0, text, fontsize=FONT)
    extent = probe.get_window_extent()
    probe.remove()
    return float(extent.width) * scale + 2, float(extent.height) * scale + 1
