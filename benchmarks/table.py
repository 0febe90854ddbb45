"""Markdown tables of a recorded benchmark, so that no number is ever typed by hand.

python benchmarks/table.py benchmarks/taylorseer_flux.json --family model sublayer --order 1
python benchmarks/table.py benchmarks/taylorseer_flux.json --levels
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]

LEVELS = ("sublayer", "block", "model")  # those a transformer has
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def interval(value: Mapping[str, float], digits: int = 1) -> str:
    """Mean and 95% interval, such as `31.2 (30.8-31.6)`."""
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f}-{value['high']:.{digits}f})"


def setting(case: Entry) -> str:
    """Level or family, interval and order in words."""
    forecast = ", newton" if case["forecast"] == "newton" else ""
    return f"{case['family']}, N={case['interval']}, O={case['order']}{forecast}"


def rows(lines: Iterable[Iterable[str]]) -> str:
    """Lines of cells as a Markdown table whose first line is the header."""
    header, *body = (list(line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *body])


def fidelity_table(run: Entry, batch: str, cases: Iterable[Entry]) -> str:
    """One row per accelerated case: time, fidelity, and the plain run of fewer steps that takes as long."""
    steps, batches = run["steps"], list(run["full"]["seconds"])
    header = ["setting", "computed", *(f"speed-up, batch {size}" for size in batches), "of its bound"]
    header += ["PSNR, dB", "relative L2", "exact captions", "plain steps in its time", "gain over them, dB"]
    full = [f"full run, {steps} steps", str(steps), *("1.00x" for _ in batches), "", "", ""]
    full += [percent(run["full"]["exact"]), "", ""]
    lines = [header, full]
    for case in cases:
        plain = case["equal_time"].get(batch)
        line = [setting(case), str(case["computed"])]
        line += [f"{case['time'][size]['speed_up']:.2f}x" for size in batches]
        line += [percent_of(case["time"][batch]["bound_reached"]), interval(case["psnr"])]
        line += [f"{case['relative_l2']['mean']:.3f}", percent(case["exact"])]
        line += [str(plain["steps"]), signed(plain["psnr_gain"])] if plain else ["none", "-"]
        lines.append(line)
    return rows(lines)


def signed(value: Mapping[str, float]) -> str:
    """Mean and 95% interval with signs, such as `+1.2 (+1.0 to +1.4)`."""
    return f"{value['mean']:+.1f} ({value['low']:+.1f} to {value['high']:+.1f})"


def percent_of(part: float) -> str:
    """A share in percent."""
    return f"{100 * part:.0f}%"


def percent(value: Mapping[str, float]) -> str:
    """A share and its 95% interval in percent."""
    return interval({key: 100 * part for key, part in value.items()}) + "%"


def level_table(run: Entry, batch: str, order: int) -> str:
    """Time and PSNR of the three levels at each interval, and the best level at each amount of time.

    The last column lists, for the time the sublayer level takes, the most faithful case of every level that takes no
    longer.
    """
    cases = [case for case in run["cases"] if case["order"] == order and case["forecast"] == "taylor"]
    by_level = {level: [case for case in cases if case["family"] == level] for level in LEVELS}
    header = ["N", "computed", *(f"{level}: time, PSNR" for level in LEVELS), "best within the sublayer level's time"]
    lines = [header]
    for position, case in enumerate(by_level["sublayer"]):
        limit = case["time"][batch]["ratio"]
        affordable = [c for level in LEVELS for c in by_level[level] if c["time"][batch]["ratio"] <= limit]
        best = max(affordable, key=lambda c: (c["psnr"]["mean"], c["time"][batch]["speed_up"]))
        cells = [
            f"{same['time'][batch]['ratio']:.2f}, {same['psnr']['mean']:.1f}"
            for same in (by_level[level][position] for level in LEVELS)
        ]
        found = f"{best['family']}, N={best['interval']}: {best['psnr']['mean']:.1f} dB"
        lines.append([str(case["interval"]), str(case["computed"]), *cells, found])
    return rows(lines)


def provenance(result: Entry, run: Entry, batch: str) -> str:
    """What the numbers of a table are and where they come from."""
    machine, versions = result["machine"], result["versions"]
    guidance = result["settings"]["call"]["true_cfg_scale"]
    return (
        f"{run['pictures']} pictures of the bundled pipeline, {run['steps']} steps, guidance {guidance:g}. PSNR and "
        "relative L2 are to the full run from the same noise, with 95% intervals over pictures; bound and comparison "
        f"with plain steps are at batch {batch}. Time is processor time of denoising on one thread ({machine['cpu']}, "
        f"torch {versions['torch']}, diffusers {versions['diffusers']}, {result['date'][:10]}). Recorded by "
        f"`{result['command']}`."
    )


def insert(text: str, document: Path, begin: str = BEGIN, end: str = END) -> None:
    """Put a text between the two marks of a document.

    Raises:
        SystemExit: the document does not have both marks once, in this order.
    """
    page = document.read_text()
    before, _, rest = page.partition(begin)
    if page.count(begin) != 1 or page.count(end) != 1 or end not in rest:
        raise SystemExit(f"{document} should hold {begin} and then {end}, once, around the place of the table")
    document.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def publish(text: str, into: Path | None, begin: str = BEGIN, end: str = END) -> None:
    """Put a text between the two marks of a document, or print it if there is none."""
    if into is not None:
        insert(text, into, begin, end)
    else:
        print(text)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="JSON file written by taylorseer_flux.py")
    parser.add_argument("--steps", type=int, help="only the full run of so many steps")
    parser.add_argument("--batch", help="pictures a call that was timed; the largest unless given")
    parser.add_argument("--family", nargs="+", default=["model"], help="levels, or 'diffusers, lite' and the like")
    parser.add_argument("--order", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--interval", type=int, nargs="+", default=[3, 4, 5, 6, 7, 8])
    parser.add_argument("--forecast", nargs="+", default=["taylor"])
    parser.add_argument("--levels", action="store_true", help="compare the levels at equal time instead")
    parser.add_argument("--into", type=Path, help=f"document that takes the tables, between {BEGIN} and {END}")
    arguments = parser.parse_args()
    result = json.loads(arguments.result.read_text())
    parts = []
    for run in result["runs"]:
        if arguments.steps not in (None, run["steps"]):
            continue
        batch = arguments.batch or max(run["full"]["seconds"], key=int)
        if arguments.levels:
            for order in arguments.order:
                title = f"{run['steps']} steps, order {order}, batch {batch}, {run['pictures']} pictures:"
                parts += [title, level_table(run, batch, order)]
        else:
            keys = ("family", "order", "interval", "forecast")
            cases = [case for case in run["cases"] if all(case[key] in getattr(arguments, key) for key in keys)]
            parts += [provenance(result, run, batch), fidelity_table(run, batch, cases)]
    text = "\n\n".join(parts)
    publish(text, arguments.into)


if __name__ == "__main__":
    main()
