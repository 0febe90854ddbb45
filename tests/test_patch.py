"""Does a replaced method come back, whatever happened to it in between?"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from diffaccel.patch import Patch


class Counter:
    """Something with a method."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, amount: int, *, times: int = 1) -> int:
        """Count up."""
        self.count += amount * times
        return self.count


def doubled(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda amount, **more: real(2 * amount, **more)


def test_replaces_one_instance_and_restores_it() -> None:
    one, other = Counter(), Counter()
    before = dict(vars(one))
    patch = Patch(one, "add", doubled)
    assert (one.add(1), other.add(1)) == (2, 1)
    patch.remove()
    one.count = 0
    assert vars(one) == before
    assert one.add(1) == 1


def test_an_attribute_of_the_instance_comes_back() -> None:
    counter = Counter()
    counter.add = own = lambda amount, **more: -1  # type: ignore[method-assign]
    patch = Patch(counter, "add", doubled)
    patch.remove()
    assert counter.add is own


def test_shows_the_signature_of_the_real_one() -> None:
    counter = Counter()
    expected = inspect.signature(counter.add)
    Patch(counter, "add", doubled)
    assert inspect.signature(counter.add) == expected


def test_a_wrapper_on_top_is_left_alone() -> None:
    counter = Counter()
    patch = Patch(counter, "add", doubled)
    ours = counter.add
    counter.add = theirs = lambda amount, **more: ours(amount, **more)  # type: ignore[method-assign]
    patch.remove()
    assert counter.add is theirs


def test_removing_twice_does_nothing() -> None:
    counter = Counter()
    patch = Patch(counter, "add", doubled)
    patch.remove()
    counter.add = own = lambda amount, **more: -1  # type: ignore[method-assign]
    patch.remove()
    assert counter.add is own


def test_a_copy_counts_for_itself() -> None:
    counter = Counter()
    Patch(counter, "add", doubled)
    duplicate = copy.deepcopy(counter)
    assert duplicate.add(1) == 1
    assert (duplicate.count, counter.count) == (1, 0)
