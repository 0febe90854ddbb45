"""diffusers' LLaDA2Pipeline without and with the cache of finished blocks; random weights, one thread.

python benchmarks/text_llada2.py --output benchmarks/text_llada2.json
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from results import environment
from table import rows
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from diffaccel import accelerate_pipeline
from diffaccel.dlm.block_causal import block_causal
from diffaccel.metrics.speed import alternate

MASK = 511
CASES = [(64, 448, 32, 32), (64, 448, 32, 8), (448, 64, 32, 32), (960, 64, 32, 32)]
"""Prompt, generated, block length, steps of a block."""


def pipeline(width: int = 256) -> LLaDA2Pipeline:
    """A pipeline around a Llama of four layers with random weights, which is block-causal inside `block_causal`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=width, intermediate_size=704, num_hidden_layers=4, num_attention_heads=8
    )
    pipe = LLaDA2Pipeline(LlamaForCausalLM(config).eval(), BlockRefinementScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measured(pipe: LLaDA2Pipeline, case: tuple[int, int, int, int], rounds: int) -> dict[str, Any]:
    """One case without and with the cache, in turns; that both write the same is checked."""
    prompt, generated, block, steps = case
    call = {
        "input_ids": torch.randint(0, MASK, (1, prompt), generator=torch.Generator().manual_seed(1)),
        "gen_length": generated,
        "block_length": block,
        "num_inference_steps": steps,
        "threshold": 1.1,  # never reached: a block takes all its steps
        "editing_threshold": None,
        "eos_early_stop": False,
        "mask_token_id": MASK,
        "output_type": "seq",
    }
    written: dict[str, torch.Tensor] = {}
    reports = []

    def run(name: str) -> None:
        if name == "cached":
            accelerate_pipeline(pipe, "block_cache")
        written[name] = pipe(**call).sequences
        if name == "cached":
            reports.append(pipe.acceleration.report())
            pipe.acceleration.remove()

    with block_causal(pipe.model, block):
        times = alternate({name: partial(run, name) for name in ("plain", "cached")}, rounds, progress=False)
    report = reports[-1]
    return {
        "case": dict(zip(("prompt", "generated", "block_length", "steps"), case, strict=True)),
        "equal": torch.equal(written["plain"], written["cached"]),
        "plain_seconds": times["plain"].cpu_seconds,
        "cached_seconds": times["cached"].cpu_seconds,
        "speedup": 1 / times["cached"].ratio(times["plain"], cpu=True),
        "rows": sum(report.rows),
        "windows": sum(report.windows),
        "row_bound": sum(report.windows) / sum(report.rows),
        "cache_bytes": report.memory,
    }


def as_table(entries: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        ["prompt", "generated", "block", "steps a block", "tokens equal", "speed-up", "bound by rows", "slots, MB"]
    ]
    for entry in entries:
        line = [str(value) for value in entry["case"].values()] + ["yes" if entry["equal"] else "no"]
        line += [f"{entry['speedup']:.2f}x", f"{entry['row_bound']:.2f}x", f"{entry['cache_bytes'] / 1e6:.1f}"]
        lines.append(line)
    return rows(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = pipeline()
    entries = [measured(pipe, case, arguments.rounds) for case in tqdm(CASES, desc="cases")]
    result = {**environment("python " + " ".join(sys.argv)), "rounds": arguments.rounds, "entries": entries}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(as_table(entries))


if __name__ == "__main__":
    main()
