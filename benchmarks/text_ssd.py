"""Self-speculative decoding, one prompt at a time: is every text that of step-wise decoding, and what is saved?

python benchmarks/text_ssd.py --output benchmarks/text_ssd.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from results import environment
from text_cells import Cell
from text_quality import BLOCK, SOURCE, WRITTEN, passages
from tqdm.auto import tqdm

from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.language.problems import ANSWER, KINDS, problems
from diffaccel.pipelines.text import TextDiffusionPipeline

UNDER = {
    None: Cell(),
    "interval": Cell("dkv", {"variant": "interval"}),
    "dual": Cell("fast_dllm", {"cache": "dual", "threshold": None}),
}
"""Caches under it, and the step-wise decoding that each must equal."""
DRAFT = 4
OTHERS = (1, 2, 7)
"""Draft lengths that are tried on a quarter of the prompts, without a cache."""


def outcomes(pipe: TextDiffusionPipeline, cell: Cell, prompts: Sequence[Any], call: dict[str, Any]) -> list[Any]:
    """One call for each prompt."""
    with cell.attached(pipe) as attached:
        return [attached([prompt], **call) for prompt in tqdm(prompts, desc=cell.name, leave=False)]


def compared(pipe: TextDiffusionPipeline, kind: str, prompts: Sequence[Any]) -> list[dict[str, Any]]:
    """SSD beside step-wise decoding, with and without a cache under both."""
    tokens = WRITTEN if kind == SOURCE else ANSWER
    call = {**Cell().arguments(tokens), **({"block_length": BLOCK, "eos_early_stop": False} if kind == SOURCE else {})}
    entries = []
    for cache, stepwise in UNDER.items():
        expected = outcomes(pipe, stepwise, prompts, call)
        for draft in (DRAFT, *OTHERS) if cache is None else (DRAFT,):
            some = prompts if draft == DRAFT else prompts[: len(prompts) // 4]
            cell = Cell("ssd", {"draft": draft, **({"cache": cache} if cache else {})})
            entries.append(
                {"kind": kind, "cache": cache, "draft": draft, **saved(outcomes(pipe, cell, some, call), expected)}
            )
            print(entries[-1], file=sys.stderr)
    return entries


def saved(found: Sequence[Any], expected: Sequence[Any]) -> dict[str, Any]:
    """How many texts are equal, and what was taken to write one."""
    pairs = list(zip(found, expected, strict=False))
    checks = [count for one in found for count in one.report.accepted]
    result: dict[str, Any] = {
        "prompts": len(found),
        "equal": sum(torch.equal(one.sequences[0], other.sequences[0]) for one, other in pairs),
        "accepted": sum(checks) / len(checks),
        "margin": min(one.report.margin for one in found),
    }
    for name in ("forwards", "rows"):
        result[name] = sum(getattr(one.report, name) for one, _ in pairs) / len(pairs)
        result[f"stepwise_{name}"] = sum(getattr(other.report, name) for _, other in pairs) / len(pairs)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="problems of each kind")
    parser.add_argument("--passages", type=int, default=100, help="stretches of source")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = bundled.text()
    pipe.set_progress_bar_config(disable=True)
    entries = []
    for kind in KINDS:
        prompts = [problem.prompt for problem in problems(kind, arguments.count, seed=1)]
        entries += compared(pipe, kind, prompts)
    entries += compared(pipe, SOURCE, passages(pipe, arguments.passages))
    settings = {"count": arguments.count, "passages": arguments.passages, "threads": 1}
    result = {**environment("python " + " ".join(sys.argv)), "settings": settings, "entries": entries}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
