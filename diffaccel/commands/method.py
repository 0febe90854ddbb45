"""The method on the command line: from options to an instance, and from what it did to words and data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from diffaccel.commands import UsageError
from diffaccel.commands.arguments import PICTURE_METHODS
from diffaccel.methods import Method, resolve, resolve_text, written_out
from diffaccel.methods.spelling import label, parse_method
from diffaccel.plan import Plan
from diffaccel.report import format_bytes

if TYPE_CHECKING:
    from diffaccel.dlm.decoding import TextMethod

OPTIONS = ("interval", "order", "warmup", "level", "forecast", "last")


def method_of(args: argparse.Namespace, pipeline: str, default: str | None = None) -> Method | None:
    """The method asked for by the options, with the preset of the class `pipeline`; None if none was.

    Raises:
        UsageError: an unknown method, a bad value, or options without a method.
    """
    options = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    text = args.method or default
    if text is None:
        if options:
            raise UsageError(
                f"--{next(iter(options))} belongs to a method: add --method {' or '.join(PICTURE_METHODS)}"
            )
        return None
    try:
        name, stated = parse_method(text)
        if twice := options.keys() & stated.keys():
            raise UsageError(f"--{min(twice)} is given twice, once in --method {text}: drop one")
        return resolve(name, pipeline or "a pipeline of pictures", stated | options)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def text_method_of(args: argparse.Namespace, pipeline: str, default: str | None = None) -> TextMethod | None:
    """As `method_of`, for a pipeline that writes text."""
    if (text := args.method or default) is None:
        return None
    try:
        name, stated = parse_method(text)
        return resolve_text(name, pipeline, stated)
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def short_name(method: Method) -> str:
    """A method in a few letters, such as "TaylorSeer N=6 O=1"."""
    return label(method, {})


def computed_steps(plan: Plan, bound: float | None = None) -> str:
    """How much a plan computes: "7 of 28 steps", or a mean where sites differ or, by the bound of a run, branches."""
    mean = plan.steps / (bound or plan.bound)
    alike = len(plan.rows) == 1 and bound in (None, plan.bound)
    return f"{mean:.0f} of {plan.steps} steps" if alike else f"{mean:.1f} of {plan.steps} steps on average"


def outcome(pipe: Any) -> dict[str, Any]:
    """What the acceleration of a pipeline planned and did in the last run, as plain data."""
    acceleration = pipe.acceleration
    plan: Plan = acceleration.plan
    bound = acceleration.report().bound
    return {
        "method": written_out(acceleration.method),
        "steps": plan.steps,
        "plan": [plan.computed(i) for i in range(len(plan.rows))],
        "computed": computed_steps(plan, bound),
        "bound": bound,
        "cache_bytes": sum(acceleration.report(name).memory for name in acceleration.networks),
    }


def summary(found: dict[str, Any]) -> str:
    """The `outcome` in one line."""
    cache = format_bytes(found["cache_bytes"])
    return f"{found['method']}: {found['computed']} computed, bound {found['bound']:.2f}x, cache {cache}"
