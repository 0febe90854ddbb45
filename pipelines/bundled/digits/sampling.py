"""Pictures of captions by any of the digit pipelines, and how many a checker reads as asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffaccel.pipelines.bundled.digits.captions import Scene, mixed_scenes, scenes
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker, accuracy


@torch.no_grad()
def generate(pipeline: Any, prompts: Sequence[str], arguments: Mapping[str, Any], seed: int, batch: int = 64) -> Tensor:
    """Pictures [N, 3, 32, 32] in -1..1, one per prompt; picture n starts from the n-th noise of generator ``seed``.

    Args:
        pipeline: of text or, with captions as labels, of classes.
        prompts: captions.
        arguments: of the pipeline's call.
        seed: of the noise.
        batch: pictures a call.
    """
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(prompts), batch):
        chunk = list(prompts[start : start + batch])
        wanted = pipeline.get_label_ids(chunk) if hasattr(pipeline, "get_label_ids") else chunk
        parts.append(pipeline(wanted, generator=generator, output_type="pt", **arguments).images)
    return torch.cat(parts).float() * 2 - 1


def judge(
    pipeline: Any,
    checker: DigitsChecker,
    arguments: Callable[[float], Mapping[str, Any]],
    guidance: float,
    pairs: int = 96,
    steps: int = 14,
) -> dict[str, float]:
    """Quick rates on held-out captions, single and pairs, without and with guidance, for following a training.

    Args:
        pipeline: any of them.
        checker: reads the pictures.
        arguments: guidance scale to the arguments of a call.
        guidance: the scale beside 1.
        pairs: so many captions of two digits, after the 48 of one.
        steps: of the runs.
    """
    single = scenes("held-out", 1)
    expected = single + [scene for scene in mixed_scenes("held-out") if scene.layout][:pairs]
    result: dict[str, float] = {}
    for scale in (1.0, guidance):
        call = {**arguments(scale), "num_inference_steps": steps}
        images = generate(pipeline, [scene.caption for scene in expected], call, seed=0)
        for name, part in (("one", slice(len(single))), ("two", slice(len(single), None))):
            wanted: list[Scene] = expected[part]
            if wanted:
                rates = accuracy(checker, images[part], wanted)
                result |= {f"{name} {key}@{scale:g}": rate for key, rate in rates.items()}
    return result
