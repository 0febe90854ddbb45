"""From the journal of `morse.py` to the result: latencies, means over seeds, speed-ups, rivals in equal time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from morse_cells import Cell

from diffaccel.morse.budget import lsd
from diffaccel.morse.protocol import front, speedups

Entry = Mapping[str, Any]

METRICS = {"fd_renders": "lower", "fd_reference": "lower", "rmse": "lower", "psnr": "higher"}
"""What speed-ups are told by, and which values are good."""
LATENCIES = ("lsd", "seconds")


def assemble(
    journal: Entry, cells: Sequence[Cell], names: Mapping[str, str], labels: Mapping[str, str], settings: Entry
) -> dict[str, Any]:
    """The recorded result of all cells that were measured with all seeds.

    Args:
        journal: what `morse.py` kept.
        cells: in order of the result.
        names: their names in the journal.
        labels: of the Dots, with a fingerprint each.
        settings: of the run.
    """
    seeds, batch = settings["seeds"], settings["timed_batch"]
    ratios = {label: journal.get(f"ratio, {digest}, {batch}") for label, digest in labels.items()}
    timings = {cell.name: journal.get(f"time, {names[cell.name]}, {batch}") for cell in cells}
    base = base_seconds([timing for timing in timings.values() if timing])
    entries, refused = [], {}
    for cell in cells:
        found = [journal.get(f"quality, {seed}, {names[cell.name]}") for seed in seeds]
        if why := next((one["refused"] for one in found if one and "refused" in one), None):
            refused[cell.name] = why
        elif all(found):
            entry = {**cell.as_dict(), "lsd": latency(cell, found[0], ratios), **means(found)}
            if timing := timings[cell.name]:
                entry |= seconds(timing, base, batch)
            entries.append(entry)
    for entry in entries:
        if entry["kind"] != "plain":
            entry["rivals"] = rivals(entry, entries)
    reference = [journal[f"quality, {seed}, reference"] for seed in seeds]
    return {
        "ratios": {label: {**(ratio or {}), "weights": labels[label]} for label, ratio in ratios.items()},
        "real": journal["real"],
        "reference": means(reference),
        "base_seconds": base,
        "cells": entries,
        "speedups": table_of_speedups(entries, settings["first"]),
        "refused": refused,
    }


def latency(cell: Cell, found: Entry, ratios: Mapping[str, Entry | None]) -> float | None:
    """LSD of a run, in calls of the network; None where N was not measured. A Dot of zero is counted as free."""
    if cell.kind == "dot":
        ratio = ratios[cell.dot]
        return None if ratio is None else float(lsd(cell.k_dash, cell.k_dot, ratio["n"]))
    return float(found["computed"])


def base_seconds(timings: Sequence[Entry]) -> dict[str, float] | None:
    """Median times of the plain run all others were timed in turn with, over all rounds of all groups."""
    if not timings:
        return None
    return {
        kind: median(second for timing in timings for second in timing[f"base_{kind}"])
        for kind in ("seconds", "cpu_seconds")
    }


def seconds(timing: Entry, base: Mapping[str, float] | None, batch: int) -> dict[str, Any]:
    """Processor and wall time of a picture: the ratio to the plain run in each round, which slow drift leaves alone."""
    assert base is not None
    return {
        "seconds": timing["ratio"] * base["cpu_seconds"] / batch,
        "wall_seconds": timing["wall_ratio"] * base["seconds"] / batch,
        "time": dict(timing),
    }


def means(found: Sequence[Entry]) -> dict[str, Any]:
    """By metric the mean over seeds, the standard deviation, and the values."""
    result = {}
    for name, first in found[0].items():
        if isinstance(first, int | float) and name != "computed":
            values = [float(one[name]) for one in found]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            result[name] = {"mean": float(np.mean(values)), "std": spread, "values": values}
    return result


def rivals(entry: Entry, entries: Sequence[Entry]) -> dict[str, Any]:
    """By kind of latency and metric the best plain run that takes no longer, and the difference seed by seed."""
    found: dict[str, Any] = {}
    for kind in LATENCIES:
        if entry.get(kind) is None:
            continue
        fits = [
            one for one in entries if one["kind"] == "plain" and (one.get(kind) or np.inf) <= entry[kind] * (1 + 1e-9)
        ]
        for metric, better in METRICS.items():
            if not fits or metric not in entry:
                continue
            sign = -1 if better == "higher" else 1
            other = min(fits, key=lambda one: sign * one[metric]["mean"])
            difference = np.subtract(entry[metric]["values"], other[metric]["values"])
            found.setdefault(kind, {})[metric] = {
                "name": other["name"],
                "difference": float(difference.mean()),
                "won": int((sign * difference < 0).sum()),
                "of": len(difference),
            }
    return found


def table_of_speedups(entries: Sequence[Entry], first: str) -> list[dict[str, Any]]:
    """Speed-ups of all families over the first-order solver and over the best of all plain solvers."""
    found = []
    plain = [entry for entry in entries if entry["kind"] == "plain"]
    baselines = {first: [entry for entry in plain if entry["solver"] == first], "best solver": plain}
    families = dict.fromkeys(
        entry["family"] for entry in entries if entry["solver"] != first or entry["kind"] != "plain"
    )
    for family in families:
        own = [entry for entry in entries if entry["family"] == family and entry["kind"] != "zero"]
        for kind in LATENCIES:
            for metric, better in METRICS.items():
                points = curve(own, kind, metric)
                for name, runs in baselines.items():
                    line = curve(runs, kind, metric)
                    line = front(line, better) if name == "best solver" else line  # type: ignore[arg-type]
                    if not points or len(line) < 2 or (name == "best solver" and own[0]["kind"] == "plain"):
                        continue
                    result = speedups(line, points, better)  # type: ignore[arg-type]
                    found.append(
                        {
                            "family": family,
                            "over": name,
                            "latency": kind,
                            "metric": metric,
                            "names": [entry["name"] for entry in own],
                            "mean": None if result.mean is None else float(result.mean),
                            "speedups": [None if one is None else float(one) for one in result.speedups],
                            "left_out_better": result.left_out_better,
                            "left_out_worse": result.left_out_worse,
                        }
                    )
    return found


def curve(entries: Sequence[Entry], kind: str, metric: str) -> list[tuple[float, float]]:
    """Latency and metric of those cells that have both."""
    has = [entry for entry in entries if entry.get(kind) is not None and metric in entry]
    return [(entry[kind], entry[metric]["mean"]) for entry in has]
