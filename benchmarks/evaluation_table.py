"""The result of `diffaccel evaluate` as a Markdown table, kept without its per-picture numbers.

python benchmarks/evaluation_table.py evaluation/result.json --keep benchmarks/evaluate_flux.json --into README.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from table import publish, rows

Entry = Mapping[str, Any]
BEGIN, END = "<!-- evaluated:begin -->", "<!-- evaluated:end -->"


def without_values(result: dict[str, Any]) -> dict[str, Any]:
    """The result without the numbers of single pictures and the texts of all prompts."""
    for candidate in result["candidates"]:
        for metric in candidate["metrics"].values():
            metric.pop("values", None)
    result["request"].pop("texts", None)
    return result


def cell(metric: Entry, value: Entry | None) -> str:
    """A number with its interval; what cannot be said is left empty."""
    if value is None or value["value"] is None:
        return ""
    digits = metric["digits"]
    text = f"{value['value']:.{digits}f}"
    if value["low"] is not None:
        text += f" ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
    return text


def table(result: Entry) -> str:
    """One row a candidate, one column a metric."""
    names = [metric["label"] + f", {metric['unit']}" * bool(metric["unit"]) for metric in result["metrics"]]
    arrows = {"higher": "↑", "lower": "↓"}
    heads = [f"{name} {arrows[metric['better']]}" for name, metric in zip(names, result["metrics"], strict=True)]
    lines = [["", "computed", "bound", "speed-up", *heads]]
    for candidate in result["candidates"]:
        time = candidate["time"]
        speed = f"{time['speedup']:.2f}x ({time['speedup_low']:.2f} to {time['speedup_high']:.2f})"
        full = candidate["kind"] == "full"
        line = [
            candidate["name"],
            f"{candidate['computed']:g}",
            f"{candidate['bound']:.2f}x",
            "1.00x" if full else speed,
        ]
        own = {} if full else candidate["metrics"]
        line += [
            cell(metric, (candidate["metrics"] if metric["kind"] != "pair" else own).get(metric["key"]))
            for metric in result["metrics"]
        ]
        lines.append(line)
    return rows(lines)


def provenance(result: Entry) -> str:
    """Where the numbers are from, in a sentence."""
    request, environment, first = result["request"], result["environment"], result["candidates"][0]["time"]
    reference = result["reference"]
    distances = f"distances to {reference['name']} unless they say to full; " if reference else ""
    return (
        f"{request['num']} pictures of {request['model']}, {request['steps']} steps, seeds from {request['seed']}, "
        f"batch {request['batch']}, {request['dtype']} on {request['device']}; speed-up in {first['clock']} of whole "
        f"calls, median of {first['rounds']} rounds with their range; 95% intervals; {distances}torch "
        f"{environment['torch']}, diffusers {environment['diffusers']}. Recorded by `{result['command']}`."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="result.json of an evaluation, or what --keep wrote")
    parser.add_argument("--keep", type=Path, help="write the result without per-picture numbers there")
    parser.add_argument("--into", type=Path, help=f"document that takes the table, between {BEGIN} and {END}")
    arguments = parser.parse_args()
    result = without_values(json.loads(arguments.result.read_text()))
    if arguments.keep:
        arguments.keep.write_text(json.dumps(result, indent=1) + "\n")
    text = f"{provenance(result)}\n\n{table(result)}"
    publish(text, arguments.into, BEGIN, END)


if __name__ == "__main__":
    main()
