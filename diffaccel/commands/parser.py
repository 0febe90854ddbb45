"""What the command line understands: its commands and their options. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

import argparse
from typing import NoReturn

from diffaccel import __version__
from diffaccel.commands.arguments import DTYPES, LEVELS, MODEL_HELP, PICTURE_METHODS, RESIZES, natural, positive, scale
from diffaccel.commands.dot_options import add_train_dot
from diffaccel.commands.examples import (
    CALIBRATE_EXAMPLES,
    EVALUATE_EXAMPLES,
    EXAMPLES,
    GENERATE_EXAMPLES,
    GENERATE_TEXT_EXAMPLES,
    INFO_EXAMPLES,
    STATISTICS_EXAMPLES,
    TRAIN_DOT_EXAMPLES,
    TUNE_EXAMPLES,
)
from diffaccel.commands.text_options import add_generate_text
from diffaccel.methods.speeds import SPEEDS
from diffaccel.methods.taylorseer import FORECASTS
from diffaccel.pipelines.bundled import NAMES


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"diffaccel: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="diffaccel",
        description="Faster diffusion pipelines whose output stays faithful.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"diffaccel {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_generate(
        _command(commands, "generate", "draw pictures, accelerated or both ways side by side", GENERATE_EXAMPLES)
    )
    add_generate_text(
        _command(
            commands,
            "generate-text",
            "write texts with a diffusion language model, accelerated or both ways",
            GENERATE_TEXT_EXAMPLES,
        )
    )
    _add_info(
        _command(commands, "info", "what a model holds and what accelerating it takes; loads no weights", INFO_EXAMPLES)
    )
    _add_evaluate(
        _command(commands, "evaluate", "what accelerations cost and gain, against the full run", EVALUATE_EXAMPLES)
    )
    _add_calibrate(
        _command(commands, "calibrate", "record what hyca and fitted learn from, and keep it", CALIBRATE_EXAMPLES)
    )
    _add_tune(_command(commands, "tune", "choose the acceleration that reaches a speed-up or a PSNR", TUNE_EXAMPLES))
    add_train_dot(
        _command(commands, "train-dot", "train the small network that morse runs between steps", TRAIN_DOT_EXAMPLES)
    )
    _add_statistics(
        _command(commands, "statistics", "keep a folder of pictures as a reference for evaluate", STATISTICS_EXAMPLES)
    )
    _command(commands, "env", "versions and machine, for a report", "")
    return parser


def _command(commands: argparse._SubParsersAction[Parser], name: str, summary: str, examples: str) -> Parser:
    """A command with the options that all have."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", metavar="FILE", help="write the results as JSON; - prints them instead of text")
    group.add_argument("--quiet", action="store_true", help="no progress and no warnings")
    group.add_argument("--debug", action="store_true", help="show where an error came from")
    return parser


def _add_generate(parser: Parser) -> None:
    parser.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help="one a picture; a class, for class-conditional models"
    )
    parser.add_argument("--model", default=NAMES[0], help=f"{MODEL_HELP} (default: {NAMES[0]})")
    parser.add_argument("--seed", type=natural, default=0, help="of every picture (default: 0)")
    parser.add_argument("--steps", type=positive, help="denoising steps (default: the pipeline's)")
    _add_picture(parser)
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: cuda if there is one)")
    parser.add_argument("--batch", type=positive, help="pictures at once (default: all if bundled, 1 for other models)")
    parser.add_argument("-o", "--output", metavar="FILE", help="picture to write (default: picture.png, compare.png)")
    group = parser.add_argument_group("comparison")
    group.add_argument("--compare", action="store_true", help="draw without and with the method, and compare")
    group.add_argument("--rounds", type=positive, help="timed runs of each (default: 9 if bundled, 1 for other models)")
    _add_method(parser, "default: none, or taylorseer with --compare")


def _add_info(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--batch", type=positive, default=1, help="pictures at once (default: 1)")
    parser.add_argument("--steps", type=positive, help="denoising steps (default: the pipeline's)")
    _add_picture(parser)
    parser.add_argument("--text-tokens", type=positive, help="length of the prompt (default: the pipeline's)")
    parser.add_argument("--sites", action="store_true", help="list all sites by name")
    _add_method(parser, "default: taylorseer")


def _add_evaluate(parser: Parser) -> None:
    group = parser.add_argument_group("what is drawn")
    group.add_argument("--model", default=NAMES[0], help=f"{MODEL_HELP} (default: {NAMES[0]})")
    group.add_argument("--prompts", metavar="FILE", help="a prompt a line, or a JSON list; bundled (default if it is)")
    group.add_argument("--num", type=positive, metavar="N", help="pictures of each candidate (default: 64)")
    group.add_argument("--seed", type=natural, default=0, help="of the first picture, others follow (default: 0)")
    group.add_argument("--steps", type=positive, help="of the full run (default: the pipeline's)")
    _add_picture(group)
    group.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: cuda if there is one)")
    group.add_argument("--batch", type=positive, help="pictures a call (default: 16 if bundled, 1 for other models)")
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--method",
        action="append",
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"an acceleration; may be given several times. Methods: {', '.join(PICTURE_METHODS)}, "
        f"{', '.join(SPEEDS)}, or a .json or .yaml file (default: taylorseer)",
    )
    group.add_argument(
        "--steps-baseline",
        action="append",
        type=positive,
        metavar="N",
        help="a plain run of N steps, beside those that equal each method in computed steps and in time",
    )
    group.add_argument("--rounds", type=positive, default=5, help="timed runs of each, in turn (default: 5)")
    group.add_argument("--images", metavar="DIR", help="generate nothing: compare these pictures with --reference")
    group.add_argument("--allow-missing", action="store_true", help="leave out pictures that only one folder has")
    group = parser.add_argument_group("metrics")
    group.add_argument("--metrics", metavar="LIST", help="such as psnr,ssim,lpips,latent,exact,fid,kid,precision,clip")
    group.add_argument(
        "--reference",
        metavar="DIR|FILE",
        help="what distributions are compared with: a folder of pictures, a statistics file, bundled, or full for the "
        "full run (default: full, or bundled if the model is)",
    )
    group.add_argument("--trust-reference", action="store_true", help="take a file that names no extractor")
    group.add_argument("--clip-model", metavar="MODEL", help="folder or hub id of a CLIPModel (default: bundled if so)")
    group.add_argument("--lpips-net", choices=("alex", "vgg", "squeeze"), default="alex", help="(default: alex)")
    group.add_argument("--resamples", type=natural, metavar="N", help="sets behind an interval of FID and its like")
    _add_extractor(group)
    group = parser.add_argument_group("files")
    group.add_argument("-o", "--output", metavar="DIR", help="folder of all results (default: diffaccel-evaluation)")
    group.add_argument("--fresh", action="store_true", help="replace what the folder holds; else it is continued")
    group.add_argument("--html", metavar="FILE", help="write the report there, too")
    group.add_argument("--save-images", action="store_true", help="write all pictures as PNG files")


def _add_calibrate(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--prompts", metavar="FILE", help="a prompt a line, or a JSON list; bundled (default if it is)")
    parser.add_argument("--num", type=positive, metavar="N", help="pictures (default: 64, or all of the file)")
    parser.add_argument("--seed", type=natural, default=1000, help="of the first picture (default: 1000)")
    parser.add_argument("--steps", type=positive, help="of each run, as later (default: the pipeline's)")
    parser.add_argument("--level", choices=LEVELS, default="model", help="where features are caught (default: model)")
    parser.add_argument(
        "--tune", type=positive, nargs="*", metavar="N", help="intervals to tune fitted for (default: 3 4 5 6 8)"
    )
    _add_picture(parser)
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: cuda if there is one)")
    parser.add_argument("--batch", type=positive, help="pictures a call (default: 16 if bundled, 1 for other models)")
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write (default: in the model's own folder)")


def _add_tune(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--speedup", type=scale, metavar="X", help="of whole calls; the most faithful that reaches it")
    target.add_argument("--psnr", type=scale, metavar="DB", help="to the full run; the fastest that reaches it")
    parser.add_argument("--prompts", metavar="FILE", help="a prompt a line, or a JSON list; bundled (default if it is)")
    parser.add_argument("--pictures", type=positive, default=8, metavar="N", help="that judge a candidate (default: 8)")
    parser.add_argument("--seed", type=natural, default=0, help="of the first picture (default: 0)")
    parser.add_argument("--steps", type=positive, help="of each run, as later (default: the pipeline's)")
    parser.add_argument(
        "--level", action="append", choices=LEVELS, help="try this one only; may be given several times"
    )
    _add_picture(parser)
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: cuda if there is one)")
    parser.add_argument("--batch", type=positive, default=1, help="pictures a call, timed ones too (default: 1)")
    parser.add_argument("--rounds", type=positive, default=5, help="timed runs, 5 or more (default: 5)")
    parser.add_argument("-o", "--output", metavar="FILE", help="JSON to write (default: in the model's own folder)")


def _add_statistics(parser: Parser) -> None:
    parser.add_argument("images", metavar="DIR", help="a folder of pictures")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="file to write, .npz")
    parser.add_argument("--device", help="such as cpu, cuda or cuda:1 (default: cuda if there is one)")
    _add_extractor(parser)


def _add_extractor(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--extractor",
        metavar="NAME",
        help="network of FID and its like: inception, fd_digits (bundled), module:attribute (default: by the model)",
    )
    parser.add_argument("--weights", metavar="FILE", help="the extractor's")
    parser.add_argument("--resize", choices=RESIZES, help="how pictures get the extractor's size (default: clean)")
    parser.add_argument("--download", action="store_true", help="allow weights of metrics to be downloaded")


def _add_picture(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--guidance", type=scale, help="guidance scale; 1 is none (default: the pipeline's)")
    parser.add_argument("--height", type=positive, help="in pixels (default: the pipeline's)")
    parser.add_argument("--width", type=positive, help="in pixels (default: the pipeline's)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32, or bfloat16 for large models on a GPU")


def _add_method(parser: Parser, default: str) -> None:
    group = parser.add_argument_group("method", "Unset options take the preset of the pipeline's class.")
    group.add_argument(
        "--method",
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"{', '.join(PICTURE_METHODS)}, {', '.join(SPEEDS)}, or a .json or .yaml file ({default})",
    )
    group.add_argument("--interval", metavar="N", type=int, help="steps from one computed step to the next")
    group.add_argument("--order", metavar="O", type=int, help="highest derivative; 0 is plain reuse")
    group.add_argument("--warmup", metavar="W", type=int, help="computed steps before the first skipped one")
    group.add_argument("--level", choices=LEVELS, help="where features are caught")
    group.add_argument("--forecast", choices=FORECASTS, help="the official recursion, or exact interpolation")
    group.add_argument("--last", action="store_const", const=True, help="also compute the last step")
