"""The command line, `diffaccel`. Commands are imported when they run, so that `--help` answers at once.

Results go to standard output, everything else to standard error. Exit status: 0 fine, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from diffaccel import __version__
from diffaccel.commands import Answer, UsageError, write_json
from diffaccel.methods import METHODS
from diffaccel.methods.taylorseer import FORECASTS
from diffaccel.pipelines.bundled import NAMES

LEVELS = ("sublayer", "block", "model")  # as in diffaccel.sites, which imports torch
DTYPES = ("float32", "bfloat16", "float16")
MODEL_HELP = f"{', '.join(NAMES)} (bundled), a folder with a diffusers pipeline, or a hub id"

EXAMPLES = """\
examples:
  diffaccel generate "a red 7 on a white background" -o seven.png
  diffaccel generate "a red 7 on a white background" "a blue 2 on a black background" --compare -o both.png
  diffaccel generate "a fox in the snow" --model black-forest-labs/FLUX.1-dev --method taylorseer --interval 6
  diffaccel info black-forest-labs/FLUX.1-dev --dtype bfloat16
"""
GENERATE_EXAMPLES = """\
examples:
  one picture, by the bundled pipeline:
    diffaccel generate "a red 7 on a white background" -o seven.png
  the same without and with TaylorSeer, the pictures side by side, the numbers as JSON:
    diffaccel generate "a red 7 on a white background" --compare --interval 4 --order 2 -o both.png --json both.json
  a pipeline of your own, saved with pipe.save_pretrained("my-flux"):
    diffaccel generate "a fox in the snow" --model ./my-flux --method taylorseer --dtype bfloat16 --device cuda
"""
INFO_EXAMPLES = """\
examples:
  diffaccel info flux-digits
  diffaccel info black-forest-labs/FLUX.1-dev --dtype bfloat16 --order 2
  diffaccel info ./my-flux --height 768 --width 768 --level block --sites --json -
"""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"diffaccel: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the program's own, and return the exit status."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as leave:  # argparse has written help, version or error
        return int(leave.code or 0)
    try:
        with warnings_shown(not args.quiet):
            command = importlib.import_module(f"diffaccel.commands.{args.command}")
            report(command.run(args), args.json)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has left; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        return fail(" ".join(str(error).split()) or type(error).__name__, 2 if isinstance(error, UsageError) else 1)
    return 0


@contextmanager
def warnings_shown(shown: bool) -> Iterator[None]:
    """Write the warnings of the library to standard error, each once, or drop them."""
    handler = logging.StreamHandler() if shown else logging.NullHandler()
    seen: set[str] = set()

    def first_time(record: logging.LogRecord) -> bool:
        known = record.getMessage() in seen
        seen.add(record.getMessage())
        return not known

    handler.addFilter(first_time)
    handler.setFormatter(logging.Formatter("diffaccel: warning: %(message)s"))
    logger = logging.getLogger("diffaccel")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def report(answer: Answer, json: str | None) -> None:
    """Print the answer, and write its data where `--json` says; with `-` only the data is printed."""
    if json is not None:
        write_json(answer.data, json)
    if json != "-":
        print(answer.text)
    sys.stdout.flush()


def fail(message: str, status: int) -> int:
    """Say in one line what went wrong."""
    print(f"diffaccel: error: {message}", file=sys.stderr)
    return status


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
    _add_info(
        _command(commands, "info", "what a model holds and what accelerating it takes; loads no weights", INFO_EXAMPLES)
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


def _add_picture(parser: Parser) -> None:
    parser.add_argument("--guidance", type=scale, help="guidance scale; 1 is none (default: the pipeline's)")
    parser.add_argument("--height", type=positive, help="in pixels (default: the pipeline's)")
    parser.add_argument("--width", type=positive, help="in pixels (default: the pipeline's)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32, or bfloat16 for large models on a GPU")


def _add_method(parser: Parser, default: str) -> None:
    group = parser.add_argument_group("method", "Unset options take the preset of the pipeline's class.")
    group.add_argument("--method", help=f"{', '.join(METHODS)} ({default})")
    group.add_argument("--interval", metavar="N", type=int, help="steps from one computed step to the next")
    group.add_argument("--order", metavar="O", type=int, help="highest derivative; 0 is plain reuse")
    group.add_argument("--warmup", metavar="W", type=int, help="computed steps before the first skipped one")
    group.add_argument("--level", choices=LEVELS, help="where features are caught")
    group.add_argument("--forecast", choices=FORECASTS, help="the official recursion, or exact interpolation")
    group.add_argument("--last", action="store_const", const=True, help="also compute the last step")


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _at_least(1, text)


def scale(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return value


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
