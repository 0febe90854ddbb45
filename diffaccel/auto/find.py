"""From the method "auto" to a choice: one that is at hand, one that was kept, or a new one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.auto import files
from diffaccel.auto.bench import Bench
from diffaccel.auto.choice import Choice, device_of
from diffaccel.auto.prompts import prompts_of, split
from diffaccel.auto.request import Request, arguments_of
from diffaccel.auto.run import search

if TYPE_CHECKING:
    from diffaccel.methods.auto import Auto

logger = logging.getLogger("diffaccel")

PICTURES, ROUNDS = 8, 5


def find(pipe: Any, auto: Auto) -> Choice:
    """The choice of a method for a pipeline: the one given, the one in a file, or one that is made and kept now.

    Raises:
        ValueError: a choice for something else, a request that cannot be met, or no prompts.
        FileNotFoundError: there is no such file.
    """
    if auto.choice is not None:
        found = auto.choice if isinstance(auto.choice, Choice) else files.load(auto.choice)
        found.check(pipe, auto.steps, None if auto.call is None else arguments_of(pipe, auto.call))
        return _told(found, pipe)
    request = Request.of(pipe, auto)
    path = files.place(pipe, request.target, request.steps) if auto.save is None else files.check_writable(auto.save)
    return (path and kept(pipe, request, path)) or make(pipe, auto, request, path)


def make(pipe: Any, auto: Auto, request: Request, path: Path | None) -> Choice:
    """Search now, and keep the choice in a file if there is a place for it."""
    learnt, judged = split(prompts_of(pipe, auto.prompts), auto.pictures or PICTURES)
    progress = auto.progress is not False
    bench = Bench(pipe, learnt, judged, request.steps, request.arguments, auto.batch or 1, auto.seed or 0, progress)
    choice = search(pipe, request, bench, auto.rounds or ROUNDS)
    if path is not None:
        files.save(choice, path)
        logger.info("auto keeps its choice in %s", path)
    else:
        logger.info("auto keeps this choice in no file: save='choice.json' does, for choice='choice.json' later")
    return _told(choice, pipe)


def kept(pipe: Any, request: Request, path: Path) -> Choice | None:
    """The choice in a file, if there is one that fits; None, with a warning, if it was made for something else.

    Raises:
        ValueError: the file is there and holds no choice.
    """
    if not path.exists():
        return None
    choice = files.load(path)
    if choice.target != request.target:
        logger.warning("%s holds a choice for %s: auto chooses anew", path, choice.target)
        return None
    try:
        choice.check(pipe, request.steps, request.arguments)
    except ValueError as error:
        logger.warning("%s: %s; auto does so now", path, error)
        return None
    return _told(choice, pipe)


def _told(choice: Choice, pipe: Any) -> Choice:
    """The choice, after it was said."""
    logger.info("%s", choice)
    if choice.plain_is_better:
        logger.warning(
            "auto chose %s, but a plain run of %d steps is as fast and nearer to the full run: %.1f to %.1f dB",
            choice.name,
            choice.plain.steps,
            choice.plain.quality.mean,
            choice.quality.mean,
        )
    if choice.conditions.device != device_of(pipe):
        logger.warning(
            "the speed-up of %.2fx was measured on %s, this pipeline is on %s: choose anew to know it here",
            choice.speed.median,
            choice.conditions.device,
            device_of(pipe),
        )
    return choice
