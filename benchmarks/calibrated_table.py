"""How calibrated methods compare at equal plans, as Markdown: feature errors, and pictures.

python benchmarks/calibrated_table.py benchmarks/feature_error.json benchmarks/calibrated_28.json \
    benchmarks/calibrated_50.json --into README.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from table import publish, rows

Entry = Mapping[str, Any]
BEGIN, END = "<!-- calibrated:begin -->", "<!-- calibrated:end -->"
INTERVALS = (3, 4, 5, 6, 8)
RULES = {
    "reuse": "reuse",
    "TaylorSeer, order 1": "Taylor 1",
    "TaylorSeer, order 2": "Taylor 2",
    "polynomial, order 2": "Newton 2",
    "the best single solver of HyCa's pool (am3)": "am3 alone",
    "HyCa, 4 clusters": "HyCa C=4",
    "HyCa, every dimension its own solver": "HyCa each dimension",
    "fitted, one set of weights": "Fitted one group, 3 anchors",
    "fitted, 4 clusters": "Fitted 4 clusters, 3 anchors",
    "fitted, every dimension": "Fitted each dimension, 3 anchors",
}
"""Rules of the table of feature errors, by what they are called there."""
METHODS = {
    "reuse": "TaylorSeer N={N} O=0 last=True",
    "TaylorSeer, order 1": "TaylorSeer N={N} O=1 last=True",
    "TaylorSeer, order 2": "TaylorSeer N={N} O=2 last=True",
    "polynomial, order 2": "TaylorSeer N={N} O=2 forecast=newton last=True",
    "HyCa, 4 clusters": "HyCa N={N} last=True",
    "fitted, steps of its choice": "Fitted N={N}",
}
"""Methods of the tables of pictures, by what they are called there."""
PICTURE_TOKENS = 1


def feature_table(result: Entry, steps: int) -> str:
    """Relative root mean square error over skipped steps in percent, held-out prompts, 95% intervals over groups."""
    lines = [["forecast of picture tokens, error in %", *(f"interval {n}" for n in INTERVALS)]]
    for name, rule in RULES.items():
        line = [name]
        for interval in INTERVALS:
            key = {"steps": steps, "leaf": PICTURE_TOKENS, "interval": interval, "rule": rule}
            [error] = [e["all"] for e in result["errors"] if all(e[k] == v for k, v in key.items())]
            line.append(f"{100 * error['mean']:.1f} ({100 * error['low']:.1f}-{100 * error['high']:.1f})")
        lines.append(line)
    return rows(lines)


def picture_table(result: Entry, metric: str, digits: int) -> str:
    """A metric of all methods by interval, the plain run that takes as long as fitted, and the speed-ups."""
    found = {candidate["name"]: candidate for candidate in result["candidates"]}
    label = next(m for m in result["metrics"] if m["key"] == metric)
    unit = f", {label['unit']}" if label["unit"] else ""
    lines = [[f"{label['label']}{unit}", *(f"interval {n}" for n in INTERVALS)]]
    for name, pattern in METHODS.items():
        values = [named(found, pattern.format(N=n))["metrics"][metric] for n in INTERVALS]
        lines.append(
            [name, *(f"{v['value']:.{digits}f} ({v['low']:.{digits}f}-{v['high']:.{digits}f})" for v in values)]
        )
    fitted = [named(found, METHODS["fitted, steps of its choice"].format(N=n)) for n in INTERVALS]
    plain = [equal_time(result, c["name"]) for c in fitted]
    lines.append(["plain steps in fitted's time", *(cell(found, name, metric, digits) for name in plain)])
    lines.append(["speed-up of fitted (bound)", *(f"{c['time']['speedup']:.2f}x ({c['bound']:.2f}x)" for c in fitted)])
    speeds = [[named(found, p.format(N=n))["time"]["speedup"] for p in METHODS.values()] for n in INTERVALS]
    lines.append(["speed-up of all, lowest to highest", *(f"{min(s):.2f}x-{max(s):.2f}x" for s in speeds)])
    return rows(lines)


def named(found: Mapping[str, Entry], name: str) -> Entry:
    """A candidate by name, whatever the order of the options in it."""
    words = sorted(name.split())
    return next(candidate for other, candidate in found.items() if sorted(other.split()) == words)


def equal_time(result: Entry, name: str) -> str | None:
    """The plain run that takes as long as a method."""
    equal = {"to": name, "by": "time"}
    return next((c["name"] for c in result["candidates"] if equal in c["equal"]), None)


def cell(found: Mapping[str, Entry], name: str | None, metric: str, digits: int) -> str:
    """A plain run and its value."""
    return "none" if name is None else f"{found[name]['metrics'][metric]['value']:.{digits}f} ({name})"


def text(features: Entry, pictures: Sequence[Entry]) -> str:
    """All tables with where they are from."""
    parts = []
    for result in pictures:
        request, held_out = result["request"], features["settings"]["held_out"]
        parts += [
            f"**{request['steps']} steps.** {request['num']} pictures of held-out prompts, recommended guidance, seeds "
            f"from {request['seed']}, one plan for all but fitted, {len(result['candidates'])} candidates in "
            f"one run, processor time at batch {request['batch']}, 95% intervals:",
            picture_table(result, "psnr", 1),
            picture_table(result, "caption", 1),
            f"{held_out['prompts']} held-out pictures in {held_out['groups']} groups (95% intervals over groups), "
            f"calibrated on {features['settings']['calibration']['prompts']} others:",
            feature_table(features, request["steps"]),
        ]
    return "\n\n".join(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="JSON written by feature_error.py")
    parser.add_argument("pictures", type=Path, nargs="+", help="results of diffaccel evaluate, see evaluation_table.py")
    parser.add_argument("--into", type=Path, help=f"document that takes the tables, between {BEGIN} and {END}")
    arguments = parser.parse_args()
    result = text(
        json.loads(arguments.features.read_text()), [json.loads(path.read_text()) for path in arguments.pictures]
    )
    publish(result, arguments.into, BEGIN, END)


if __name__ == "__main__":
    main()
