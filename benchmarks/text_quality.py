"""Answers of the bundled language model under every method: right ones, and tokens as in the plain run; one thread.

python benchmarks/text_quality.py --output benchmarks/text_quality.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import environment, share
from text_cells import DKV, FAST_DLLM, FEWER, GREEDY, Cell, sparsed
from tqdm.auto import tqdm

from diffaccel.metrics.text import token_match
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.language.evaluate import passages
from diffaccel.pipelines.bundled.language.problems import ANSWER, KINDS, problems
from diffaccel.pipelines.text import TextDiffusionPipeline

SOURCE = "python source"
PROMPT, WRITTEN, BLOCK = 128, 64, 32
"""Tokens of source that are given, tokens written after them, and in blocks of how many."""


class Task:
    """Prompts to answer, and what is right if anything is.

    Args:
        pipe: the pipeline, not accelerated.
        kind: of problems, or `SOURCE`.
        count: prompts.
        batch: prompts of a call.
    """

    def __init__(self, pipe: TextDiffusionPipeline, kind: str, count: int, batch: int) -> None:
        self.pipe, self.kind, self.batch = pipe, kind, batch
        self.tokens = WRITTEN if kind == SOURCE else ANSWER
        self.blocks = WRITTEN // BLOCK if kind == SOURCE else 1
        self.call: dict[str, Any] = {"block_length": BLOCK, "eos_early_stop": False} if kind == SOURCE else {}
        self.answers: list[str] | None = None
        if kind == SOURCE:
            self.prompts: list[Any] = passages(pipe, count, PROMPT).tolist()
        else:
            asked = problems(kind, count)
            self.prompts, self.answers = [one.prompt for one in asked], [one.answer for one in asked]

    def run(self, cell: Cell) -> dict[str, Any]:
        """All prompts decoded as a cell says: tokens (count, written), right or not, and what it took."""
        written, texts, reports = [], [], []
        begin = time.process_time()
        with cell.attached(self.pipe) as pipe:
            for start in range(0, len(self.prompts), self.batch):
                generator = torch.Generator().manual_seed(start)
                given = {**cell.arguments(self.tokens, self.blocks), **self.call}
                output = pipe(self.prompts[start : start + self.batch], generator=generator, **given)
                texts += output.texts
                written += [one.numpy() for one in output.sequences]
                reports.append(output.report)
        count = len(self.prompts)
        result = {
            "tokens": np.stack(written),
            "forwards": sum(report.forwards for report in reports) / len(reports),
            "rows": sum(report.rows for report in reports) / count,
            "cpu_seconds": time.process_time() - begin,
        }
        if self.answers is not None:
            result["right"] = [text == answer for text, answer in zip(texts, self.answers, strict=True)]
        if reports[0].density is not None:
            result["density"] = sum(report.density for report in reports) / len(reports)
        return result


def compared(task: Task, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Every cell beside the full plain run with the same order of positions."""
    full: dict[str, dict[str, Any]] = {}
    entries = []
    for cell in tqdm(cells, desc=task.kind, leave=False):
        result = task.run(cell)
        if cell == cell.reference:
            full[cell.reference.name] = result
        other = full[cell.reference.name]
        match = token_match(torch.from_numpy(result["tokens"]), torch.from_numpy(other["tokens"]))
        entry = {"cell": cell.name, "agreement": float(match.mean()), "same": share((match == 1).tolist()), **result}
        entry["row_bound"] = other["rows"] / result["rows"]
        if "right" in result:
            entry["right"] = share(result["right"])
        entries.append({key: value for key, value in entry.items() if key != "tokens"})
    return entries


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="problems of each kind")
    parser.add_argument("--passages", type=int, default=100, help="stretches of source")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = bundled.text()
    pipe.set_progress_bar_config(disable=True)
    common = [*FEWER, *DKV, *GREEDY, *FAST_DLLM]
    tasks = {}
    for kind in tqdm([*KINDS, SOURCE], desc="tasks"):
        of_source = kind == SOURCE
        task = Task(pipe, kind, arguments.passages if of_source else arguments.count, arguments.batch)
        tasks[kind] = compared(task, [*common, *sparsed(16 if of_source else 4)])
    settings = {"count": arguments.count, "passages": arguments.passages, "batch": arguments.batch, "threads": 1}
    result = {**environment("python " + " ".join(sys.argv)), "settings": settings, "tasks": tasks}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for kind, entries in tasks.items():
        for entry in entries:
            right = f"{entry['right']['mean']:.3f}" if "right" in entry else "-"
            print(
                f"{kind:14s} {entry['cell']:50s} right {right} same {entry['same']['mean']:.3f} "
                f"agreement {entry['agreement']:.3f} rows {entry['rows']:.0f} bound {entry['row_bound']:.2f}x"
            )


if __name__ == "__main__":
    main()
