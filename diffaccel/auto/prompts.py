"""Which prompts a search learns from, and which others it judges by."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from diffaccel.pipelines import bundled

LEARNT = 4
"""Pictures whose full runs are recorded: more than this did not make fitted weights better, see docs/auto.md."""
SPLIT = 12


def prompts_of(pipe: Any, given: Sequence[str | int] | None) -> list[str]:
    """The prompts given, as text; else bundled ones for a bundled pipeline, or classes from all over their range.

    Raises:
        TypeError: prompts that are no list of texts or numbers of classes.
        ValueError: no prompts, and none that are known.
    """
    if given is not None:
        if isinstance(given, str) or not all(isinstance(prompt, str | int) for prompt in given):
            raise TypeError(f"prompts must be a list of texts, or of classes, got {given!r}")
        if not given:
            raise ValueError("prompts must hold at least one prompt; 12 are plenty")
        return [str(prompt) for prompt in given]
    folder = str(getattr(pipe, "name_or_path", ""))
    for name in bundled.NAMES:
        if folder == str(bundled.path(name)):
            return bundled.prompts("train", name)[:SPLIT]
    if "class_labels" in inspect.signature(type(pipe).__call__).parameters:
        known = getattr(pipe, "labels", None) or {}
        classes = sorted(set(known.values())) or list(range(pipe.transformer.config.num_embeds_ada_norm))
        count = min(SPLIT, len(classes))
        return [str(classes[i * len(classes) // count]) for i in range(count)]
    raise ValueError(
        f"auto tries candidates on prompts of the kind you will draw, and knows none for this {type(pipe).__name__}: "
        "give prompts=[...], 12 or so"
    )


def split(prompts: Sequence[str], judged: int) -> tuple[list[str], list[str]]:
    """Prompts to learn from and prompts to judge by, one a picture; no prompt is among both unless there is but one.

    At most half of them, and no more than `LEARNT`, are learnt from, spread evenly over the list. Prompts are repeated,
    with other noise, where there are fewer than pictures.
    """
    distinct = list(dict.fromkeys(prompts))
    count = min(LEARNT, len(distinct) // 2)
    learnt = [distinct[i * len(distinct) // count] for i in range(count)] or distinct
    others = [prompt for prompt in distinct if prompt not in learnt] or distinct
    return _filled(learnt, LEARNT), _filled(others, judged)


def _filled(prompts: Sequence[str], count: int) -> list[str]:
    return [prompts[i % len(prompts)] for i in range(count)]
