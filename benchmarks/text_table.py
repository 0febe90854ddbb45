"""The recorded comparisons of diffusion language models as Markdown: short for the README, all cells for docs/text.md.

python benchmarks/text_table.py --readme README.md --docs docs/text.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from table import insert, rows
from text_llada2 import as_table

HERE = Path(__file__).parent
KINDS = {"totals": "totals", "chain": "sums mod 4", "sorting": "sorting"}
SOURCE = "python source"
SHOWN = [
    "plain",
    "plain, 50% of the steps",
    "plain, 20% of the steps",
    "dkv refresh=4",
    "dkv refresh=8",
    "dkv variant=interval refresh=8",
    "dkv variant=prefill",
    "without_delay refresh=8",
    "plain remasking=random",
    "dkv variant=greedy refresh=2 window=4 remasking=random",
    "fast_dllm cache=dual threshold=None",
    "fast_dllm cache=None threshold=0.9",
    "fast_dllm cache=dual threshold=0.9",
    "sparsed rho=0.5",
]
"""Cells of the README's table; block sizes of SparseD differ between tasks and are left out of its name."""
FAST = [
    "plain, 50% of the steps",
    "dkv refresh=8",
    "dkv variant=interval refresh=8",
    "dkv variant=prefill",
    "fast_dllm cache=prefix threshold=None",
    "fast_dllm cache=dual threshold=None",
    "sparsed rho=0.3 block_size=32",
]
Result = Mapping[str, Any]


def quality(result: Result, names: Iterable[str] | None = None) -> str:
    """Right answers and agreement of every cell, one line a cell."""
    tasks = {kind: {_name(entry["cell"]): entry for entry in found} for kind, found in result["tasks"].items()}
    header = ["", *(f"{word}: right" for word in KINDS.values()), *(f"{word}: as plain" for word in KINDS.values())]
    header += ["source: tokens as plain", "rows, of plain: problems", "source"]
    lines = [header]
    for name in names or tasks["totals"]:
        own = {kind: found[name] for kind, found in tasks.items()}
        line = [f"`{name}`"]
        line += [_percent(own[kind]["right"]["mean"]) for kind in KINDS]
        line += [_percent(own[kind]["same"]["mean"]) for kind in KINDS]
        share = sum(1 / own[kind]["row_bound"] for kind in KINDS) / len(KINDS)
        line += [_percent(own[SOURCE]["agreement"]), f"{share:.2f}", f"{1 / own[SOURCE]['row_bound']:.2f}"]
        lines.append(line)
    return rows(lines)


def speed(result: Result, names: Iterable[str], wide: Result | None = None) -> str:
    """Speed-up of each method at every length and batch, beside its bound by rows."""
    header, columns = [""], []
    for found, word in ((result, ""), (wide, "wide, ")):
        if found is None:
            continue
        places = dict.fromkeys((entry["length"], entry["batch"]) for entry in found["entries"])
        for length, batch in places:
            header.append(f"{word}{length} x {batch}")
            columns.append({e["cell"]: e for e in found["entries"] if (e["length"], e["batch"]) == (length, batch)})
    rates = [f"{column['plain']['tokens_per_second']:.0f}" for column in columns]
    lines = [header, ["`plain`, tokens a second", *rates]]
    for name in names:
        cells = [_speed(column[name]) if name in column else "-" for column in columns]
        lines.append([f"`{name}`", *cells])
    return rows(lines)


def memory(result: Result, names: Iterable[str]) -> str:
    """What a run adds to the peak of memory, in MB, and the bytes of stored keys and values in it."""
    places = list(dict.fromkeys((entry["length"], entry["batch"]) for entry in result["entries"]))
    found = {(e["cell"], e["length"], e["batch"]): e for e in result["entries"]}
    lines = [["", *(f"{length} x {batch}" for length, batch in places)]]
    for name in ["plain", *names]:
        cells = []
        for length, batch in places:
            entry = found.get((name, length, batch))
            cells.append(
                "-" if entry is None else f"{entry['peak_bytes'] / 1e6:.0f} ({entry['cache_bytes'] / 1e6:.1f})"
            )
        lines.append([f"`{name}`", *cells])
    return rows(lines)


def speculation(result: Result) -> str:
    """What self-speculative decoding saves, and on how many prompts its text was that of step-wise decoding."""
    header = ["task", "under it", "draft", "equal", "forwards: step-wise", "SSD", "accepted a check"]
    lines = [[*header, "rows, of step-wise", "ms a text", "speed-up"]]
    for entry in result["entries"]:
        cells = [entry["kind"], entry["cache"] or "nothing", str(entry["draft"])]
        cells += [f"{entry['equal']} of {entry['prompts']}", f"{entry['stepwise_forwards']:.1f}"]
        cells += [f"{entry['forwards']:.1f}", f"{entry['accepted']:.2f}"]
        cells += [f"{entry['rows'] / entry['stepwise_rows']:.2f}", f"{1000 * entry['seconds']:.0f}"]
        lines.append([*cells, f"{entry['speedup']:.2f}x"])
    return rows(lines)


def provenance(result: Result, what: str) -> str:
    """Where and with what a table was measured."""
    machine, versions = result["machine"], result["versions"]
    return (
        f"{what} One thread ({machine['cpu']}, torch {versions['torch']}, transformers {versions['transformers']}, "
        f"{result['date'][:10]}); recorded by `{result['command']}`."
    )


def _name(cell: str) -> str:
    """Without SparseD's block size, which differs between tasks."""
    return " ".join(word for word in cell.split() if not word.startswith("block_size="))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _speed(entry: Mapping[str, Any]) -> str:
    bound = f" of {entry['row_bound']:.2f}x" if entry["row_bound"] > 1 else ""
    return f"{entry['speedup']:.2f}x{bound}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, help="document that takes the short tables")
    parser.add_argument("--docs", type=Path, help="document that takes all of them")
    arguments = parser.parse_args()
    names = ("quality", "speed", "speed_wide", "ssd", "llada2")
    answers, fast, wide, checks, llada2 = (json.loads((HERE / f"text_{name}.json").read_text()) for name in names)
    if (large := HERE / "text_speed_large.json").is_file():
        fast["entries"] += json.loads(large.read_text())["entries"]
    counts = answers["settings"]
    about = {
        "quality": provenance(
            answers,
            f"{counts['count']} held-out problems of each kind and {counts['passages']} passages, temperature 0; the "
            "plain run with a random order is the reference of Greedy.",
        ),
        "speed": provenance(
            fast,
            f"{fast['settings']['written']} tokens written after a prompt, in all so many positions x texts; "
            "processor time in turns, median of "
            f"{fast['settings']['rounds']} rounds, beside the bound by rows. Wide: random weights, 8 layers of width "
            "512.",
        ),
        "ssd": provenance(
            checks,
            "One prompt a call, temperature 0; processor time in turns with step-wise decoding, medians over prompts.",
        ),
        "llada2": provenance(
            llada2,
            "A Llama of four layers of width 256 with random weights, made causal between blocks, batch 1; processor "
            f"time in turns, median of {llada2['rounds']} rounds, beside the bound by rows.",
        ),
    }
    tables = {
        "text-quality": f"{about['quality']}\n\n{quality(answers, SHOWN)}",
        "text-speed": f"{about['speed']}\n\n{speed(fast, FAST, wide)}",
        "text-ssd": f"{about['ssd']}\n\n{speculation(checks)}",
        "text-quality-all": f"{about['quality']}\n\n{quality(answers)}",
        "text-memory": memory(fast, FAST),
        "text-llada2": f"{about['llada2']}\n\n{as_table(llada2['entries'])}",
    }
    for document, names in ((arguments.readme, ("text-quality", "text-speed")), (arguments.docs, list(tables)[1:])):
        for name in names if document is not None else ():
            insert(tables[name], document, f"<!-- {name}:begin -->", f"<!-- {name}:end -->")
    if arguments.readme is None and arguments.docs is None:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
