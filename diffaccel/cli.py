"""The command line, `diffaccel`. Commands are imported when they run, so that `--help` answers at once.

Results go to standard output, everything else to standard error. Exit status: 0 fine, 1 failed, 2 wrong usage,
3 weights of a metric are missing.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffaccel.commands import Answer, NotHereError, UsageError, write_json
from diffaccel.commands.parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the program's own, and return the exit status."""
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as leave:  # argparse has written help, version or error
        return int(leave.code or 0)
    try:
        with warnings_shown(not args.quiet):
            command = importlib.import_module(f"diffaccel.commands.{args.command.replace('-', '_')}")
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
        status = {UsageError: 2, NotHereError: 3}.get(type(error), 1)
        return fail(" ".join(str(error).split()) or type(error).__name__, status)
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


if __name__ == "__main__":
    sys.exit(main())
