"""Checks that methods share."""

from __future__ import annotations

from typing import Any


def check_whole(method: Any, **least: int) -> None:
    """Raise ValueError unless these options of a method are whole numbers of at least so much."""
    for name, bound in least.items():
        value = getattr(method, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise ValueError(f"{name} must be a whole number of at least {bound}, got {value!r}")
