"""The model card of the bundled language model: what it is, what it learnt from, what was measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from diffaccel.pipelines.bundled.language.batches import SHARES, TOKENS
from diffaccel.pipelines.bundled.language.evaluate import LENGTH, Row
from diffaccel.pipelines.bundled.language.problems import ANSWER, KINDS, problems
from diffaccel.pipelines.text import TextDiffusionPipeline

_PAGE = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-generation
tags: [masked-diffusion, language-model, llada, miniature]
---

# text-problems

A miniature but genuine masked diffusion language model of LLaDA's kind (arXiv:2502.09992): a `{model}` whose
positions all see each other, trained to fill in masks. It answers small problems that have one right answer each,
so that acceleration methods can be compared, tested and tried offline, on a CPU, by counting right answers.

```python
from diffaccel.pipelines import bundled

pipe = bundled.text()
problem = bundled.text_problems("{kind}", 1)[0]
print(problem.prompt + pipe(problem.prompt).texts[0], problem.answer)
```

or `diffaccel generate-text "{prompt}"`. The problems it knows:

{kinds}

A prompt ends with `=`. An answer and the ends of text after it are {answer} tokens, the pipeline's `gen_length`.

## Parts

| part | class | |
|---|---|---|
| model | `{model}`: {layers} layers, {heads} heads, width {width}, feed-forward {inner} | {parameters} parameters |
| tokenizer | byte-pair encoding of Python source, every digit a token of its own | {vocabulary} tokens |

Weights are stored in float16 and loaded in float32. There is no noise schedule: a run begins with {answer} masks and
fills in the most certain ones at each step.

## Data

Problems drawn at random while training; one in eight is held out, by a checksum of its prompt. Source is the standard
library of Python {python} without its tests; one module in sixteen is held out, by a checksum of its name. Of the
batches, {short:.0%} hold problems alone, {after:.0%} problems after a stretch of source (up to {longest:,} tokens in
all) and {source:.0%} source alone. Python and its library are under the PSF licence; none of it is part of this folder
but the pieces of words in the vocabulary.

## Training

`python -m diffaccel.pipelines.bundled.language.train --minutes {minutes:.0f} --output DIR` on a CPU:
{iterations} batches of about {tokens:,} tokens each, {seconds:.0f} minutes on one core of a machine that others
used as well. The loss is LLaDA's: cross-entropy of masked answer tokens over the share that is masked. Muon for the
matrices in the layers, AdamW for the rest, linear decay to zero over the last {decay:.0%} of the time; the weights are
an exponential moving average.{note}

## Measured

{measured}

## Limits

- It was trained on problems of exactly these forms and on Python source: other prompts are answered by something that
  looks like one or the other.
- Its source is no code that runs: the model is far too small to write any.
- The network is small, so that what is not the network (bookkeeping, Python) takes a larger part of the time than in a
  large model: counts of forwards and rows carry over, seconds less so.
- Positions up to {longest:,} tokens were trained on.
"""


def card(
    pipe: TextDiffusionPipeline, history: Mapping[str, Any], minutes: float, measured: Sequence[Row], note: str = ""
) -> str:
    """The text of a card.

    Args:
        pipe: the model.
        history: `iteration` and `seconds` of its training, and the `recipe` it had.
        minutes: the training was meant to take; its rate falls towards their end.
        measured: by `evaluate.measure`.
        note: what else is to be said of the training.
    """
    config, first = pipe.model.config, next(iter(KINDS))
    return _PAGE.format(
        model=type(pipe.model).__name__,
        kind=first,
        prompt=problems(first, 1)[0].prompt,
        kinds=_kinds(),
        answer=ANSWER,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        width=config.hidden_size,
        inner=config.intermediate_size,
        parameters=f"{sum(weight.numel() for weight in pipe.model.parameters()):,}",
        vocabulary=len(pipe.tokenizer),
        python=".".join(platform.python_version_tuple()[:2]),
        short=SHARES[0],
        after=SHARES[1],
        source=SHARES[2],
        minutes=minutes,
        iterations=f"{history['iteration']:,}",
        tokens=TOKENS,
        seconds=history["seconds"] / 60,
        decay=history["decay"],
        note=note and f" {note}",
        measured=_tables(measured),
        longest=config.max_position_embeddings,
    )


def _kinds() -> str:
    lines = ["| kind | what is asked for | prompt | answer |", "|---|---|---|---|"]
    for kind, make in KINDS.items():
        problem, what = problems(kind, 1)[0], (make.__doc__ or "").partition(":")[0].lower()
        lines.append(f"| `{kind}` | {what} | `{problem.prompt}` | `{problem.answer}` |")
    return "\n".join(lines)


def _tables(measured: Sequence[Row]) -> str:
    if not measured:
        return "Nothing yet."
    lines = [
        "As shipped, loaded in float32, without any cache, greedy, in one block; by",
        "`python -m diffaccel.pipelines.bundled.language.export`. Held-out problems whose answer is exactly right,",
        "with Wilson's 95% intervals:",
        "",
        "| problems | n | steps | exactly right |",
        "|---|---|---|---|",
    ]
    for row in measured:
        if row["what"] in KINDS:
            interval = f"{row['exact']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
            lines.append(f"| {row['what']} | {row['n']} | {row['steps']} | {interval} |")
    lines += [
        "",
        f"Held-out source, passages of {LENGTH} tokens with some masked at random and all guessed at once:",
        "",
        "| masked | passages | likeliest token right | cross-entropy, nats | perplexity |",
        "|---|---|---|---|---|",
    ]
    for row in measured:
        if row["what"] == "source":
            numbers = f"{row['right']:.3f} | {row['loss']:.3f} | {row['perplexity']:.1f}"
            lines.append(f"| {row['masked']:.0%} | {row['n']} | {numbers} |")
    return "\n".join(lines)
