"""Options of `diffaccel train-dot`. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

import argparse
import json
from typing import Any

from diffaccel.commands.arguments import DTYPES, MODEL_HELP, natural, positive, scale
from diffaccel.morse.recipe import NORMS, PAIRS, PRECISIONS, DotRecipe

KINDS = ("shared", "independent")  # as in diffaccel.morse.dot, which imports torch
SPACES = ("epsilon", "sample")  # as in diffaccel.morse.coordinates, which imports torch
BASES = ("hold", "taylor")
SHAPE = ("kind", "m", "widths", "rank", "blocks", "body", "residual_space", "guided", "base")
"""What makes a new Dot; one that is trained on has all of it."""


def plans(text: str) -> tuple[tuple[int, int], ...]:
    """Dash and Dot steps of runs, such as 3+6,4+8."""
    try:
        made = [tuple(int(part) for part in plan.split("+")) for plan in text.split(",")]
    except ValueError:
        made = []
    if not made or any(len(plan) != 2 or min(plan) < 1 for plan in made):
        raise argparse.ArgumentTypeError(f"must be Dash+Dot steps, 1 or more each, such as 3+6,4+8, got {text!r}")
    return tuple((plan[0], plan[1]) for plan in made)


def integers(text: str) -> list[int]:
    """Whole numbers of at least 0, such as 96,160."""
    try:
        return [natural(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"must be whole numbers such as 96,160, got {text!r}") from error


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        made = json.loads(text)
    except ValueError:
        made = None
    if not isinstance(made, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object such as '{{\"num_layers\": 2}}', got {text!r}")
    return made


def add_train_dot(parser: argparse.ArgumentParser) -> None:
    """The options; those of a new Dot are None where they were not given."""
    own = DotRecipe()
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--data",
        metavar="DIR",
        required=True,
        help="a folder of pictures: metadata.jsonl, a text file beside each, or a folder a class; or bundled",
    )
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder of the Dot and its checkpoint")
    parser.add_argument("--dot", metavar="DIR", help="train this one on; else a new one")
    parser.add_argument("--fresh", action="store_true", help="replace what the folder holds; else it is continued")
    _add_dot(parser.add_argument_group("a new Dot"))
    group = parser.add_argument_group("the runs it is for")
    group.add_argument("--scheduler", metavar="CLASS", help="of diffusers (default: the pipeline's)")
    group.add_argument(
        "--plans",
        type=plans,
        default=own.plans,
        metavar="DASH+DOT,...",
        help=f"steps of the runs (default: {','.join(f'{dash}+{dot}' for dash, dot in own.plans)})",
    )
    group.add_argument(
        "--guidance", type=scale, nargs=2, metavar=("LOW", "HIGH"), help="scales (default: the pipeline's own)"
    )
    group.add_argument("--height", type=positive, help="in pixels (default: the pipeline's)")
    group.add_argument("--width", type=positive, help="in pixels (default: the pipeline's)")
    group = parser.add_argument_group("training")
    _number(group, "--iterations", own.iterations, "N", "steps of the optimizer")
    _number(group, "--batch", own.batch, "N", "pictures a step")
    _number(group, "--learning-rate", own.learning_rate, "X", "of AdamW, at its peak")
    _number(group, "--ema", own.ema, "X", "decay of the average of the weights that is kept")
    _number(group, "--checkpoint-every", own.checkpoint_every, "N", "steps between checkpoints")
    _words(group, "--pairs", PAIRS, own.pairs, "where times come from: any two, those of the plans, or the plans run")
    _words(group, "--loss-norm", NORMS, own.loss_norm, "errors as they are, or relative to the change in their gap")
    _words(group, "--mixed-precision", PRECISIONS, own.mixed_precision, "of Dot; the loss is in float32")
    group.add_argument("--seed", type=natural, default=own.seed, help=f"of everything random (default: {own.seed})")
    group.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: cuda if there is one)")
    group.add_argument("--dtype", choices=DTYPES, help="of the model and of Dot (default: float32)")


def _add_dot(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--kind", choices=KINDS, help="Dash's own layers with LoRA, or a network of its own")
    group.add_argument("--m", type=natural, metavar="M", help="halvings of the sample in front of it (default: 2)")
    group.add_argument("--widths", type=integers, metavar="W,...", help="of new levels, finest first (default: 96,160)")
    group.add_argument("--rank", type=natural, metavar="R", help="of the LoRA, 0 for none (default: 64)")
    group.add_argument("--blocks", type=integers, metavar="I,...", help="transformer blocks to run (default: all)")
    group.add_argument("--body", type=json_object, metavar="JSON", help="config of an independent network, in part")
    group.add_argument("--residual-space", choices=SPACES, help="default: by whether the scheduler adds noise")
    group.add_argument(
        "--guided", action="store_const", const=True, help="correct the guided estimate, not each of its branches"
    )
    group.add_argument("--base", choices=BASES, help="the estimate it corrects (default: hold, the last of Dash)")


def _number(group: argparse._ArgumentGroup, name: str, default: float, metavar: str, words: str) -> None:
    kind = positive if isinstance(default, int) else scale
    group.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{words} (default: {default})")


def _words(group: argparse._ArgumentGroup, name: str, choices: tuple[str, ...], default: str, words: str) -> None:
    group.add_argument(name, choices=choices, default=default, help=f"{words} (default: {default})")
