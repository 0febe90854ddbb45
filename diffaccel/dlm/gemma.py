"""DiffusionGemmaPipeline: why no method of this package accelerates it, and what does.

The pipeline already keeps keys and values of the prompt and of finished canvases (an encoder cache). Inside a canvas
nothing stays: a position that is not committed gets a fresh random token at every step (there is no mask token), and
the logits of all positions, fed back as self-conditioning, are part of every row's input, a committed one's too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

_REASONS: Mapping[str, str] = {
    "BlockCache": "the pipeline keeps prompt and finished canvases itself, in an encoder cache",
    "Dkv": "no row of a canvas is the same at two steps: uncommitted positions hold fresh random tokens, and the "
    "logits of all positions are fed back into every row",
    "FastDllm": "the part that does not change, prompt and finished canvases, is cached already; inside a canvas "
    "uncommitted positions hold fresh random tokens and the logits of all positions are fed back into every row",
    "Ssd": "a step draws fresh random tokens for uncommitted positions, so a draft cannot be checked against the steps "
    "it stands for",
    "SparseD": "a pattern found at one step says nothing of the next, since uncommitted positions hold fresh random "
    "tokens, and most layers look through a sliding window only",
}
_OTHERWISE = "its canvases hold fresh random tokens at every step and its logits are fed back, so nothing can be reused"


def refuse(pipe: Any, method: Any) -> NoReturn:
    """Say why a method cannot accelerate a DiffusionGemmaPipeline, and what makes it faster.

    Args:
        pipe: the pipeline.
        method: what was asked for.

    Raises:
        ValueError: always.
    """
    reason = _REASONS.get(type(method).__name__, _OTHERWISE)
    raise ValueError(
        f"{type(method).__name__} cannot accelerate {type(pipe).__name__}: {reason}. What does: a higher "
        "confidence_threshold in the call (a canvas ends once its best tokens stay and its mean entropy is below it), "
        'fewer num_inference_steps, and cache_implementation="static", whose fixed shapes let the decoder be compiled '
        "(compare what it writes: beyond the sliding window its output may differ)"
    )
