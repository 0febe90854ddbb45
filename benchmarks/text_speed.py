"""Time, rows and memory of every method by length and batch, in turns with the plain run; one thread.

python benchmarks/text_speed.py --output benchmarks/text_speed.json
python benchmarks/text_speed.py --wide --lengths 128 512 --batches 1 --output benchmarks/text_speed_wide.json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from results import environment
from text_cells import FEWER, Cell
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from diffaccel.metrics.speed import alternate
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.language.evaluate import passages
from diffaccel.pipelines.text import TextDiffusionPipeline

WRITTEN = 32
"""Tokens that are written, in one block, one a step."""
CELLS = [
    *FEWER[:2],
    Cell("dkv", {"refresh": 8}),
    Cell("dkv", {"variant": "interval", "refresh": 8}),
    Cell("dkv", {"variant": "prefill"}),
    Cell("fast_dllm", {"cache": "prefix", "threshold": None}),
    Cell("fast_dllm", {"cache": "dual", "threshold": None}),
    Cell("sparsed", {"rho": 0.3, "block_size": 32}),
]
"""All but self-speculative decoding, whose time depends on the text: text_ssd.py measures it."""


def pipeline(wide: bool) -> TextDiffusionPipeline:
    """The bundled pipeline; or a wider one of eight layers with random weights, which cost what trained ones do."""
    pipe = bundled.text()
    if wide:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=pipe.model.config.vocab_size,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            max_position_embeddings=2048,
        )
        pipe = TextDiffusionPipeline(LlamaForCausalLM(config).eval(), pipe.tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: TextDiffusionPipeline, cell: Cell, prompts: list[list[int]], kept: dict[str, Any] | None = None) -> None:
    """One call, attached and taken off again; its report goes to `kept`."""
    with cell.attached(pipe):
        output = pipe(prompts, eos_early_stop=False, **cell.arguments(WRITTEN))
    if kept is not None:
        kept[cell.name] = output.report


def timed(pipe: TextDiffusionPipeline, length: int, batch: int, rounds: int) -> list[dict[str, Any]]:
    """All cells in turns at one length and batch."""
    prompts = passages(pipe, batch, length - WRITTEN).tolist()
    # SparseD gains nothing below 512 positions, and takes longest where there is most to do.
    cells = [cell for cell in CELLS if cell.method != "sparsed" or (length >= 512 and length * batch <= 8192)]
    reports: dict[str, Any] = {}
    runs = {cell.name: partial(run, pipe, cell, prompts, reports) for cell in cells}
    times = alternate(runs, rounds, progress=False)
    plain = times[cells[0].name]
    full = reports[cells[0].name]
    return [
        {
            "length": length,
            "batch": batch,
            "cell": cell.name,
            "cpu_seconds": times[cell.name].cpu_seconds,
            "speedup": 1 / times[cell.name].ratio(plain, cpu=True),
            "tokens_per_second": batch * WRITTEN / sorted(times[cell.name].cpu_seconds)[rounds // 2],
            "forwards": reports[cell.name].forwards,
            "rows": reports[cell.name].rows,
            "row_bound": full.rows / reports[cell.name].rows,
            "cache_bytes": reports[cell.name].cache,
        }
        for cell in cells
    ]


def peak(pipe: TextDiffusionPipeline, entry: dict[str, Any]) -> int:
    """Bytes that a run holds at its peak, beyond what the process held before it (Linux)."""
    prompts = passages(pipe, entry["batch"], entry["length"] - WRITTEN).tolist()
    cell = next(cell for cell in CELLS if cell.name == entry["cell"])
    ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier runs left, which this one would take for its own
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    run(pipe, cell, prompts)
    return _memory("VmHWM") - before


def _memory(name: str) -> int:
    """A field of the process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--most", type=int, default=8192, help="leave out larger products of length and batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wide", action="store_true", help="a wider network with random weights")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = pipeline(arguments.wide)
    entries = []
    places = [(n, b) for n, b in product(arguments.lengths, arguments.batches) if n * b <= arguments.most]
    for length, batch in tqdm(places, desc="lengths and batches"):
        entries += timed(pipe, length, batch, arguments.rounds)
    for entry in tqdm(entries, desc="peak memory"):
        entry["peak_bytes"] = peak(pipe, entry)
    settings = {"written": WRITTEN, "rounds": arguments.rounds, "wide": arguments.wide, "threads": 1}
    result = {**environment("python " + " ".join(sys.argv)), "settings": settings, "entries": entries}
    text = json.dumps(result, indent=1) + "\n"
    if arguments.output is not None:
        arguments.output.write_text(text)
    for entry in entries:
        print(
            f"{entry['length']:5d} {entry['batch']:3d} {entry['cell']:45s} {entry['speedup']:.2f}x of "
            f"{entry['row_bound']:.2f}x {entry['forwards']} forwards {entry['peak_bytes'] / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()
