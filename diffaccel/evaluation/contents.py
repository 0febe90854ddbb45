"""What a report says, whatever it is written in: cells of numbers, who is ahead of whom, sentences.

The input everywhere is the result dictionary that `diffaccel evaluate --json` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffaccel.report import format_bytes

Result = Mapping[str, Any]
Ahead = Literal["method", "fewer", "neither", "unknown"]

ARROWS = {"higher": "↑", "lower": "↓"}
NO_NUMBER = "n/a"
GAIN_NOTE = "Difference: the method less the plain run, with its 95% interval; nobody is ahead where that holds zero."


@dataclass(frozen=True)
class Cell:
    """A number as text, and what it comes with: an interval, a range, a remark."""

    text: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Column:
    """One quantity of all candidates, in their order."""

    title: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Duel:
    """A method against a plain run of fewer steps, by one metric.

    Attributes:
        of: the method's name.
        over: name of the plain run.
        by: what both have in common: "time" or "steps" (computed ones).
        metric: its entry in the result.
        difference: the method's value less the plain run's, pictures paired.
        ahead: "method", "fewer", "neither" where the interval holds zero, "unknown" without a number.
    """

    of: str
    over: str
    by: str
    metric: Mapping[str, Any]
    difference: Cell
    ahead: Ahead

    @property
    def equal(self) -> str:
        """What the two have in common, in words."""
        return "equal time" if self.by == "time" else "equal computed steps"

    @property
    def winner(self) -> str:
        """Who is ahead, in words."""
        words = {"method": self.of, "fewer": "fewer steps", "neither": "no clear difference", "unknown": NO_NUMBER}
        return words[self.ahead]


@dataclass(frozen=True)
class Headline:
    """A candidate in one sentence, and how it stands against fewer steps (None if there is none to stand against)."""

    name: str
    sentence: str
    duel: Duel | None


def full_run(result: Result) -> Mapping[str, Any] | None:
    """The candidate that is the full run; None where folders were compared."""
    return next((candidate for candidate in result["candidates"] if candidate["kind"] == "full"), None)


def candidates_of(result: Result, *kinds: str) -> list[Mapping[str, Any]]:
    """The candidates of these kinds, in order."""
    return [candidate for candidate in result["candidates"] if candidate["kind"] in kinds]


def identical(entry: Mapping[str, Any] | None) -> bool:
    """Are all pictures those of the full run, bit by bit, so that there is no number?"""
    return bool(entry and entry["value"] is None and entry.get("identical") and entry["identical"] == entry["n"])


def number(value: float, metric: Mapping[str, Any], unit: bool = False, signed: bool = False) -> str:
    """A value with the metric's digits; never a minus zero."""
    digits = metric["digits"]
    text = f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"
    name = metric.get("unit") if unit else None
    return f"{text} {name}" if name else text


def interval(entry: Mapping[str, Any], metric: Mapping[str, Any], signed: bool = False) -> str:
    """The interval of an entry, "" if it has none."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    return f"{number(entry['low'], metric, signed=signed)} to {number(entry['high'], metric, signed=signed)}"


def estimate(entry: Mapping[str, Any] | None, metric: Mapping[str, Any], unit: bool = False) -> Cell:
    """One metric of one candidate; empty where it was not taken."""
    if entry is None:
        return Cell()
    if entry["value"] is None:
        return Cell("identical" if identical(entry) else NO_NUMBER)
    same = entry.get("identical") or 0
    notes = [interval(entry, metric), f"{same} of {entry['n']} identical" if same else ""]
    return Cell(number(entry["value"], metric, unit), ", ".join(note for note in notes if note))


def cost_columns(result: Result) -> list[Column]:
    """What the candidates cost; a column that would be empty is left out."""
    candidates = result["candidates"]
    columns = [
        Column("computed", [_computed(candidate) for candidate in candidates]),
        Column("bound", [_factor(candidate.get("bound")) for candidate in candidates]),
        Column("seconds", [_seconds(candidate.get("time")) for candidate in candidates]),
        Column("speed-up", [_speedup(candidate.get("time")) for candidate in candidates]),
        Column("cache", [_cache(candidate.get("cache_bytes")) for candidate in candidates]),
    ]
    return [column for column in columns if any(cell.text for cell in column.cells)]


def metric_columns(result: Result) -> list[Column]:
    """What the candidates reach, a column a metric; its title has the unit and an arrow to where it is better."""
    return [
        Column(heading(metric), [_reached(candidate, metric) for candidate in result["candidates"]])
        for metric in result["metrics"]
    ]


def heading(metric: Mapping[str, Any]) -> str:
    """Label, unit and arrow of a metric: "PSNR dB ↑"."""
    return " ".join(part for part in (metric["label"], metric.get("unit"), ARROWS[metric["better"]]) if part)


def samples(result: Result, metric: Mapping[str, Any]) -> str:
    """The n of a metric: "n = 64", or the range over the candidates."""
    entries = (candidate["metrics"].get(metric["key"]) for candidate in result["candidates"])
    counts = sorted({entry["n"] for entry in entries if entry is not None and entry.get("n") is not None})
    if not counts:
        return "not taken"
    return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"


def legend(result: Result) -> list[tuple[str, str]]:
    """A line a metric: its heading; where it is better, how many samples, what it says."""
    return [
        (
            heading(metric),
            f"{metric['better']} is better, {samples(result, metric)}. {metric.get('about') or ''}".strip(),
        )
        for metric in result["metrics"]
    ]


def remark(candidate: Mapping[str, Any]) -> str:
    """Why a run of fewer steps is there: "equal time to TaylorSeer N=4 O=2"."""
    parts: dict[str, list[str]] = {}
    for equal in candidate.get("equal") or []:
        parts.setdefault("time" if equal["by"] == "time" else "computed steps", []).append(equal["to"])
    return "; ".join(f"equal {by} to {' and '.join(names)}" for by, names in parts.items())


def timing_note(result: Result) -> str:
    """How speed was measured, "" if it was not."""
    rounds = {c["time"]["rounds"] for c in result["candidates"] if c.get("time")}
    if not rounds:
        return ""
    if max(rounds) == 1:
        return "One run of each is no measurement of speed: ask for more rounds."
    many = " to ".join(str(count) for count in sorted({min(rounds), max(rounds)}))
    return f"Speed: median of {many} rounds in turn, with the range over the rounds. Bound: steps by computed steps."


def _reached(candidate: Mapping[str, Any], metric: Mapping[str, Any]) -> Cell:
    if candidate["kind"] == "full" and metric["kind"] == "pair":
        return Cell("reference")
    return estimate(candidate["metrics"].get(metric["key"]), metric)


def _computed(candidate: Mapping[str, Any]) -> Cell:
    computed, steps = candidate.get("computed"), candidate.get("steps")
    if computed is None:
        return Cell()
    return Cell(f"{computed:g} of {steps}" if steps and candidate["kind"] != "fewer" else f"{computed:g}")


def _factor(value: float | None) -> Cell:
    return Cell() if value is None else Cell(f"{value:.2f}x")


def _seconds(time: Mapping[str, Any] | None) -> Cell:
    if time is None:
        return Cell()
    return Cell(f"{time['median']:.2f}", f"{time['low']:.2f} to {time['high']:.2f}" if time["rounds"] > 1 else "")


def _speedup(time: Mapping[str, Any] | None) -> Cell:
    if time is None or time.get("speedup") is None:
        return Cell()
    low, high = time.get("speedup_low"), time.get("speedup_high")
    spread = low is not None and high is not None and time["rounds"] > 1 and low < high
    return Cell(f"{time['speedup']:.2f}x", f"{low:.2f} to {high:.2f}" if spread else "")


def _cache(count: float | None) -> Cell:
    return Cell() if count is None else Cell(format_bytes(count))
