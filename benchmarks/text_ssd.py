"""Self-speculative decoding, one prompt at a time: is every text that of step-wise decoding, and what is saved?

python benchmarks/text_ssd.py --output benchmarks/text_ssd.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from results import environment
from text_cells import Cell
from text_quality import BLOCK, PROMPT, SOURCE, WRITTEN
from tqdm.auto import tqdm

from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.language.evaluate import passages
from diffaccel.pipelines.bundled.language.problems import ANSWER, KINDS, problems
from diffaccel.pipelines.text import TextDiffusionOutput, TextDiffusionPipeline

UNDER = {
    None: Cell(),
    "interval": Cell("dkv", {"variant": "interval"}),
    "dual": Cell("fast_dllm", {"cache": "dual", "threshold": None}),
}
"""Caches under it, and the step-wise decoding that each must equal."""
DRAFT = 4
OTHERS = (1, 2, 7)
"""Draft lengths that are tried, too, without a cache."""


class Outcome(NamedTuple):
    """A call with one prompt, and the processor time it took."""

    output: TextDiffusionOutput
    seconds: float


def outcomes(
    pipe: TextDiffusionPipeline, cells: Sequence[Cell], prompts: Sequence[Any], call: dict[str, Any]
) -> list[list[Outcome]]:
    """One call for each prompt under each cell, in turn and in reversed order every other time."""
    found: list[list[Outcome]] = [[] for _ in cells]
    turns = list(zip(cells, found, strict=True))
    for number, prompt in enumerate(tqdm(prompts, desc=", ".join(cell.name for cell in cells), leave=False)):
        for cell, kept in reversed(turns) if number % 2 else turns:
            with cell.attached(pipe) as attached:
                begin = time.process_time()
                output = attached([prompt], **call)
                kept.append(Outcome(output, time.process_time() - begin))
    return found


def compared(pipe: TextDiffusionPipeline, kind: str, prompts: Sequence[Any]) -> list[dict[str, Any]]:
    """SSD beside step-wise decoding; with other drafts, and with a cache under both, on a quarter of the prompts."""
    tokens, blocks = (WRITTEN, WRITTEN // BLOCK) if kind == SOURCE else (ANSWER, 1)
    call = Cell().arguments(tokens, blocks) | {"block_length": tokens // blocks, "eos_early_stop": False}
    quarter = prompts[: len(prompts) // 4]
    entries = []
    for cache, draft in [(None, DRAFT), *((None, other) for other in OTHERS), ("interval", DRAFT), ("dual", DRAFT)]:
        some = prompts if (cache, draft) == (None, DRAFT) else quarter
        cell = Cell("ssd", {"draft": draft, **({"cache": cache} if cache else {})})
        expected, found = outcomes(pipe, [UNDER[cache], cell], some, call)
        entries.append({"kind": kind, "cache": cache, "draft": draft, **saved(found, expected)})
        print(entries[-1], file=sys.stderr)
    return entries


def saved(found: Sequence[Outcome], expected: Sequence[Outcome]) -> dict[str, Any]:
    """How many texts are equal, and what was taken to write one."""
    pairs = [(one.output, other.output) for one, other in zip(found, expected, strict=True)]
    checks = [count for one, _ in pairs for count in one.report.accepted]
    result: dict[str, Any] = {
        "prompts": len(pairs),
        "equal": sum(torch.equal(one.sequences[0], other.sequences[0]) for one, other in pairs),
        "accepted": sum(checks) / len(checks),
        "margin": min(one.report.margin for one, _ in pairs),
        "seconds": median(one.seconds for one in found),
        "stepwise_seconds": median(other.seconds for other in expected),
        "speedup": median(other.seconds / one.seconds for one, other in zip(found, expected, strict=True)),
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
    entries += compared(pipe, SOURCE, passages(pipe, arguments.passages, PROMPT).tolist())
    settings = {"count": arguments.count, "passages": arguments.passages, "threads": 1}
    result = {**environment("python " + " ".join(sys.argv)), "settings": settings, "entries": entries}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
