"""Methods in words: read from `taylorseer:interval=5,order=2`, and named for tables. Imports no torch."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a method written as `taylorseer:interval=5,order=2,level=sublayer`.

    Values are numbers, `true`, `false`, `none`, or else words.

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


def label(method: Any, stated: Mapping[str, Any]) -> str:
    """A method in a few words: "TaylorSeer N=4 O=2 level=sublayer"; of other options only those that were stated."""
    letters = {"interval": "N", "order": "O"}
    options = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    words = [f"{letter}={options[name]}" for name, letter in letters.items() if name in options]
    words += [f"{name}={value}" for name, value in stated.items() if name not in letters]
    return " ".join([type(method).__name__, *words])


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
