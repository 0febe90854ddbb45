"""The prompts of an evaluation: bundled ones, or a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from diffaccel.commands import UsageError
from diffaccel.pipelines import bundled

NUMBER = 64
"""Pictures of each candidate unless the user says otherwise, or gives a file of prompts."""


def read_prompts(
    source: str | None, model: str, count: int | None, split: Literal["train", "held-out"] = "held-out"
) -> list[str]:
    """As many prompts as asked for; where there are fewer they are repeated, each time with other seeds.

    Args:
        source: a file, "bundled", or None for the bundled ones where the model is.
        model: what the user calls it.
        count: how many; None for 64, or all of a file.
        split: of the bundled prompts.

    Raises:
        UsageError: no prompts, or a file that cannot be read.
    """
    if source in (None, "bundled"):
        if model not in bundled.NAMES:
            raise UsageError("prompts are bundled for bundled models only: give --prompts FILE, a prompt a line")
        prompts = bundled.prompts(split, model)
    else:
        prompts = _prompts_in(Path(str(source)))
    count = count or (len(prompts) if source not in (None, "bundled") else NUMBER)
    return [prompts[i % len(prompts)] for i in range(count)]


def _prompts_in(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        prompts = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts {path} cannot be read: {error}") from error
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UsageError(f"--prompts {path} should hold a list of texts, as JSON, or a text file with one a line")
    if not (kept := [prompt.strip() for prompt in prompts if prompt.strip()]):
        raise UsageError(f"--prompts {path} holds no prompt: write one a line")
    return kept
