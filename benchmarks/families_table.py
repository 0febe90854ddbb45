"""Tables of `families.py`, so that no number is ever typed by hand.

python benchmarks/families_table.py benchmarks/families_dit.json benchmarks/families_sd.json --into README.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from table import interval, percent, percent_of, publish, rows, signed

Entry = Mapping[str, Any]
BEGIN, END = "<!-- families:begin -->", "<!-- families:end -->"


def family_table(run: Entry, cases: Iterable[Entry]) -> str:
    """One row per accelerated case: time, fidelity, and the plain run of fewer steps that takes as long."""
    header = ["setting", "computed", "speed-up", "of its bound", "PSNR, dB", "relative L2", "exact captions"]
    header += ["plain steps in its time", "gain over them, dB"]
    full = [f"full run, {run['steps']} steps", str(run["steps"]), "1.00x", "", "", "", percent(run["full"]["exact"])]
    lines = [header, [*full, "", ""]]
    for case in cases:
        plain, speed_up = case["equal_time"], case["time"]["speed_up"]
        line = [case["name"], f"{case['computed']:g}", f"{speed_up:.2f}x", percent_of(speed_up / case["bound"])]
        line += [interval(case["psnr"]), interval(case["relative_l2"], 3), percent(case["exact"])]
        line += [str(plain["steps"]), signed(plain["psnr_gain"])] if plain else ["none", "-"]
        lines.append(line)
    return rows(lines)


def provenance(result: Entry, run: Entry) -> str:
    """What the numbers of a table are and where they come from."""
    machine, versions, settings = result["machine"], result["versions"], result["settings"]
    guidance = run["call"]["guidance_scale"]
    return (
        f"{run['pictures']} pictures of {run['model']}, {run['steps']} steps, guidance {guidance:g}. "
        "PSNR and relative L2 are to the full run from the same noise, with 95% intervals over pictures. Time is "
        f"processor time of whole calls for {settings['timed_batch']} pictures on one thread, median of "
        f"{settings['rounds']} rounds ({machine['cpu']}, torch {versions['torch']}, diffusers {versions['diffusers']}, "
        f"{result['date'][:10]}). Recorded by `{result['command']}`."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files written by families.py")
    parser.add_argument("--level", nargs="+", help="only settings of these levels, and calibrated methods")
    parser.add_argument("--into", type=Path, help=f"document that takes the tables, between {BEGIN} and {END}")
    arguments = parser.parse_args()
    parts = []
    for result in (json.loads(path.read_text()) for path in arguments.results):
        for run in result["runs"]:
            methods = [case for case in run["cases"] if case["method"] is not None]
            if arguments.level is not None:
                methods = [case for case in methods if level(case) in (None, *arguments.level)]
            parts += [provenance(result, run), family_table(run, methods)]
    text = "\n\n".join(parts)
    publish(text, arguments.into, BEGIN, END)


def level(case: Entry) -> str | None:
    """The level of a case of TaylorSeer; None for other methods."""
    name, _, value = case["method"].partition("level='")
    return value.partition("'")[0] if name.startswith("TaylorSeer") else None


if __name__ == "__main__":
    main()
