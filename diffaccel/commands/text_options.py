"""Options of `diffaccel generate-text`. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

import argparse

from diffaccel.commands.arguments import DTYPES, TEXT_METHODS, natural, positive, scale
from diffaccel.pipelines.bundled import TEXT

REMASKINGS = (  # as in diffaccel.dlm.scores, which imports torch
    "low_confidence",
    "random",
    "maskgit_plus",
    "topk_margin",
    "entropy",
    "origin",
)
TEXT_HELP = f"{', '.join(TEXT)} (bundled), a folder with a TextDiffusionPipeline or a LLaDA, Dream or plain checkpoint"
CALL = {
    "gen_length": "gen_length",
    "steps": "num_inference_steps",
    "block_length": "block_length",
    "temperature": "temperature",
    "cfg_scale": "cfg_scale",
    "remasking": "remasking",
    "threshold": "threshold",
}
"""Options that are arguments of a call, by the names there."""


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def add_generate_text(parser: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="what the text follows; one text each")
    parser.add_argument("--model", default=TEXT[0], help=f"{TEXT_HELP}, or a hub id of either (default: {TEXT[0]})")
    parser.add_argument("--seed", type=natural, default=0, help="of every text, where chance decides (default: 0)")
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: cuda if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32, or bfloat16 for large models on a GPU")
    group = parser.add_argument_group("decoding")
    group.add_argument("--gen-length", type=positive, metavar="N", help="tokens to write (default: the pipeline's)")
    group.add_argument("--steps", type=positive, metavar="N", help="of all tokens together (default: one a token)")
    group.add_argument("--block-length", type=positive, metavar="N", help="blocks decoded in turn (default: one block)")
    group.add_argument("--temperature", type=scale, metavar="X", help="0 takes the likeliest tokens (default: 0)")
    group.add_argument("--cfg-scale", type=scale, metavar="X", help="classifier-free guidance; 0 is none (default: 0)")
    group.add_argument("--remasking", choices=REMASKINGS, help="how positions are ranked (default: by the model)")
    group.add_argument("--threshold", type=share, metavar="R", help="decode all that are this sure, in fewer steps")
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"{', '.join(TEXT_METHODS)}, or a .json or .yaml file (default: none, or dkv with --compare)",
    )
    group.add_argument("--compare", action="store_true", help="write without and with the method, and compare")
    group.add_argument("--rounds", type=positive, metavar="N", help="timed runs of each (default: 5)")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="show the text on standard error while it is decoded (default: on a terminal)",
    )
