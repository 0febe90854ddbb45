"""Methods in words: read from `taylorseer:interval=5,order=2`, and named for tables. Imports no torch."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffaccel.methods.speeds import SPEEDS


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a method written as `taylorseer:interval=5,order=2,level=sublayer`.

    The name may be a word such as `fast`, or a file such as `config.yaml`.
    Values are numbers, `inf`, `true`, `false`, `none`, or else words.

    Raises:
        ValueError: it is not written like this.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or not key.isidentifier() or not value:
            raise ValueError(f"{part!r} in {text!r} is no option: write them as {name}:interval=4,order=2")
        if key in options:
            raise ValueError(f"{text!r} gives {key} twice")
        options[key] = _value(value)
    return name.strip(), options


def label(method: Any, stated: Mapping[str, Any], name: str = "") -> str:
    """A method in a few words: "TaylorSeer N=4 O=2 level=sublayer"; of other options only those that were stated.

    A `name` that is a word for a speed, or a file, stands before it: "fast, TaylorSeer N=4 O=2".
    """
    letters = {"interval": "N", "threshold": "R", "order": "O"}
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    words = [f"{letter}={options[key]}" for key, letter in letters.items() if key in options]
    words += [f"{key}={value}" for key, value in stated.items() if key not in letters]
    title = " ".join([type(method).__name__, *words])
    return f"{name}, {title}" if name in SPEEDS or Path(name).suffix else title


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "inf": math.inf}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
