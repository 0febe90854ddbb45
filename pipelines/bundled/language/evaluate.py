"""What the language model can do: problems answered exactly, and masked tokens of Python source filled in."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.metrics.bootstrap import share_interval
from diffaccel.pipelines.bundled.language import python_source
from diffaccel.pipelines.bundled.language.problems import ANSWER, KINDS, Problem, problems
from diffaccel.pipelines.text import TextDiffusionPipeline

Row: TypeAlias = "dict[str, str | int | float | None]"

STEPS = (20, 10, 5)
"""Steps in which the answers are decoded: one, two and four tokens a step."""
AT_ONCE = 100
"""Problems of a call."""
SHARES = (0.15, 0.50, 0.85)
"""Shares of the tokens of a passage that are masked."""
PASSAGES, LENGTH = 64, 256
"""Passages of source, and their tokens."""


def answered(
    pipe: TextDiffusionPipeline, asked: Sequence[Problem], steps: int = ANSWER, bar: tqdm[None] | None = None
) -> list[bool]:
    """Of each problem, whether it is answered exactly, greedily decoded in so many steps."""
    right: list[bool] = []
    for start in range(0, len(asked), AT_ONCE):
        part = asked[start : start + AT_ONCE]
        output: Any = pipe([problem.prompt for problem in part], gen_length=ANSWER, num_inference_steps=steps)
        right += [text == problem.answer for text, problem in zip(output.texts, part, strict=True)]
        if bar is not None:
            bar.update(len(part))
    return right


def passages(pipe: TextDiffusionPipeline, count: int, length: int = LENGTH) -> Tensor:
    """Stretches of held-out source that lie evenly spread over it, tokens (count, length)."""
    tokens = torch.tensor(pipe.tokenizer.backend_tokenizer.encode(python_source.text("held-out")).ids)
    starts = torch.linspace(0, len(tokens) - length, count).long()
    return tokens[starts[:, None] + torch.arange(length)]


@torch.no_grad()
def filled(pipe: TextDiffusionPipeline, tokens: Tensor, share: float, seed: int = 0) -> tuple[float, float]:
    """Share of masked tokens whose likeliest guess is right, and their cross-entropy in nats, all guessed at once.

    Args:
        pipe: the model.
        tokens: passages (count, length).
        share: of each passage's tokens that is masked, at random places.
        seed: of the places.
    """
    order = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)).argsort(1)
    masked = order.argsort(1) < round(share * tokens.shape[1])
    given = tokens.masked_fill(masked, pipe.config.mask_token_id).to(pipe.device)
    logits = torch.cat([pipe.model(input_ids=part, use_cache=False).logits.cpu() for part in given.split(8)])[masked]
    right = (logits.argmax(1) == tokens[masked]).float().mean()
    return right.item(), F.cross_entropy(logits.float(), tokens[masked]).item()


def measure(pipe: TextDiffusionPipeline, count: int, stretches: int = PASSAGES) -> list[Row]:
    """All numbers of the card: `count` held-out problems of each kind in each number of steps, then source."""
    rows: list[Row] = []
    with tqdm(total=count * len(KINDS) * len(STEPS), desc="problems", unit="problem") as bar:
        for kind in KINDS:
            asked = problems(kind, count)
            for steps in STEPS:
                found = share_interval(answered(pipe, asked, steps, bar))
                interval = {"low": found.low, "high": found.high}
                rows.append({"what": kind, "steps": steps, "n": found.n, "exact": found.value, **interval})
    tokens = passages(pipe, stretches)
    for share in SHARES:
        right, loss = filled(pipe, tokens, share)
        row: Row = {"what": "source", "masked": share, "n": len(tokens), "right": right, "loss": loss}
        rows.append(row | {"perplexity": exp(loss)})
    return rows
