"""Ship Dots: ``python -m diffaccel.pipelines.bundled.digits.export_dots NAME ... --output DIR``.

Takes Dots that ``.train_dots`` wrote into DIR, measures how much faster than their networks they are on this machine,
and writes them with a model card as float16 safetensors into the folder ``dots`` of their pipeline, or under ``--to``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from diffaccel.morse.dot import MorseDot
from diffaccel.morse.probe import only_network
from diffaccel.morse.ratio import Ratio, measure_n
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits.export import readable
from diffaccel.pipelines.bundled.digits.train_dots import DOTS, Bundled, prepared

BATCH = 64
"""Pictures at once when N is measured."""
PAIRS = {
    "uniform": "pairs of any two times with one jump between them, as in the paper",
    "plan": "pairs at the gaps of plans",
    "on-policy": "the Dot steps of the pipeline's own runs, where the network was asked what it would have said",
}


def export(name: str, output: Path, to: Path | None = None) -> Path:
    """Write a trained Dot with its card.

    Args:
        name: in ``DOTS``.
        output: folder of the trainings.
        to: where the folder of the Dot goes.

    Returns:
        The folder written.

    Raises:
        OSError: it was not trained yet.
    """
    chosen = DOTS[name]
    pipe = prepared(chosen)
    dot: MorseDot = MorseDot.from_pretrained(output / name)
    dot.attach(only_network(pipe))
    ratio = measure_n(pipe, dot.eval(), rounds=9, **_call(chosen.pipeline))
    dot.register_to_config(ratio=asdict(ratio))
    folder = (bundled.path(chosen.pipeline) / "dots" if to is None else to) / name.partition("-")[2]
    dot.half().save_pretrained(folder)
    training = json.loads((output / name / "training.json").read_text())
    (folder / "README.md").write_text(card(name, chosen, dot, ratio, training))
    readable(folder)
    return folder


def _call(name: str) -> dict[str, Any]:
    """Arguments of a call that draws ``BATCH`` pictures."""
    arguments = bundled.call_defaults(name)
    if name in bundled.UNCONDITIONAL:
        return arguments | {"batch_size": BATCH}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * BATCH
    return arguments | {"prompt": bundled.prompts("held-out", name)[:BATCH]}


def card(name: str, chosen: Bundled, dot: MorseDot, ratio: Ratio, training: dict[str, Any]) -> str:
    """The model card."""
    recipe, last = training["recipe"], training["history"][-1]
    size = sum(parameter.numel() for parameter in dot.parameters())
    kind = "shares the network's weights" if dot.config.kind == "shared" else "has weights of its own"
    gaps = "\n".join(f"| {gap} | {share:.2f} |" for gap, share in last["by_gap"].items())
    begun = f" It continues `{chosen.begin}`." if chosen.begin else ""
    guided = ", and corrects the guided estimate" if dot.config.guided else ""
    scale = bundled.call_defaults(chosen.pipeline).get("guidance_scale")
    option = f", guided={scale:g}" if dot.config.guided else ""
    place = f'"{chosen.pipeline}", "{name.partition("-")[2]}"'
    exchange = ""
    if chosen.scheduler is not None:
        solver, settings = chosen.scheduler
        given = "".join(f", {key}={value!r}" for key, value in settings.items())
        exchange = f"pipe.scheduler = diffusers.{solver}.from_config(pipe.scheduler.config{given})\n"
    return f"""---
license: apache-2.0
library_name: diffaccel
base_model: {chosen.pipeline}
tags: [morse, digits, miniature]
---

# {name}

A Dot for the bundled `{chosen.pipeline}`: it {kind}{guided}. {size:,} parameters, float16. It works with that network
only, and holds none of its weights.

```python
import diffusers
from diffaccel import accelerate_pipeline
from diffaccel.pipelines import bundled

pipe = bundled.load("{chosen.pipeline}")
{exchange}accelerate_pipeline(pipe, "morse", dot=bundled.dot_path({place}), lsd=8{option})
```

Trained with `python -m diffaccel.pipelines.bundled.digits.train_dots {name}` on {PAIRS[chosen.pairs]}, under
`{dot.config.scheduler}`: {recipe["iterations"]} steps of {recipe["batch"]} pictures.{begun}

N = {ratio.n:.2f} ({ratio.batch} samples a call, {ratio.dtype}, {ratio.device}).

Of the change of the network's estimate it explained, in the last rounds of its training:

| gap, share of all time | explained power |
|---|---|
{gaps}
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(DOTS), metavar="NAME", help=", ".join(DOTS))
    parser.add_argument("--output", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--to", type=Path, help="where to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names:
        print(export(name, arguments.output, arguments.to))


if __name__ == "__main__":
    main()
