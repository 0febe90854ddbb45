"""Checks that methods share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def check_whole(method: Any, **least: int) -> None:
    """Raise ValueError unless these options of a method are whole numbers of at least so much."""
    for name, bound in least.items():
        value = getattr(method, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise ValueError(f"{name} must be a whole number of at least {bound}, got {value!r}")


def check_most(method: Any, **most: int) -> None:
    """Raise ValueError if one of these options of a method is greater than this."""
    for name, bound in most.items():
        if getattr(method, name) > bound:
            raise ValueError(f"{name} must be at most {bound}, got {getattr(method, name)!r}")


def check_word(method: Any, **words: Sequence[str]) -> None:
    """Raise ValueError unless each of these options of a method is one of its words."""
    for name, known in words.items():
        value = getattr(method, name)
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_full_above(method: Any) -> None:
    """Raise ValueError unless a method's `full_above` is a share of the rows."""
    if not 0 < method.full_above <= 1:
        raise ValueError(f"full_above is a share of the rows, above 0 and at most 1, got {method.full_above}")


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: what may have been meant."""
    match = difflib.get_close_matches(word, list(words), n=1)
    return f": did you mean {match[0]!r}?" if match else "."
