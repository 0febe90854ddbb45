"""Does a clock that counts the calls of a query tell where each begins and ends, and how long it is?"""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from diffaccel.query_clock import QueryClock


class Nested:
    """A loop of three calls within two methods."""

    def __init__(self, located: list[Any]) -> None:
        self.located, self.inner_runs, self.beside, self.clock = located, 1, 0, None

    def outer(self) -> str:
        self._call(self.beside)
        for _ in range(self.inner_runs):
            self.inner()
        self._call(self.beside)
        return "done"

    def _call(self, times: int) -> None:
        for _ in range(times):
            self.located.append(self.clock.locate(0.5))

    def inner(self, calls: int = 3) -> None:
        self._call(calls)


def test_the_innermost_entry_begins_a_query() -> None:
    seen: list[Any] = []
    owner, ended = Nested(seen), []
    clock = owner.clock = QueryClock([(owner, "outer"), (owner, "inner")])
    clock.finished.append(lambda: ended.append(len(seen)))
    clock.attach(nn.Identity())
    clock.attach(nn.Identity())
    assert owner.outer() == "done"
    assert seen == [None] * 3  # counted
    owner.inner_runs = 2  # two queries in one call of the outer entry
    owner.outer()
    assert [(moment.run, moment.step, moment.steps, moment.branch) for moment in seen[3:]] == [
        (run, step, 3, "call 0") for run in (0, 1) for step in range(3)
    ]
    assert ended == [6, 9]
    with pytest.raises(RuntimeError, match="2 network calls, and the plan is for 3"):
        owner.inner(2)
    clock.detach()
    assert "outer" not in vars(owner)
    assert "inner" not in vars(owner)
    assert clock.locate() is None


def test_calls_of_an_outer_entry_are_no_part_of_the_query_within() -> None:
    owner = Nested([])
    owner.clock = QueryClock([(owner, "outer"), (owner, "inner")])
    owner.clock.attach(nn.Identity())
    owner.beside = 2
    owner.outer()
    assert owner.clock.calls == 3
    owner.located.clear()
    owner.outer()
    first, second, *query, last, end = owner.located
    assert [moment.step for moment in query] == [0, 1, 2]
    assert first.run == second.run != query[0].run
    assert last is end is None


def test_a_number_of_calls_may_be_given() -> None:
    owner = Nested([])
    owner.clock = QueryClock([(owner, "inner")], calls=3)
    owner.clock.attach(nn.Identity())
    owner.inner()
    assert [moment.step for moment in owner.located] == [0, 1, 2]
    with pytest.raises(ValueError, match="at least 1"):
        QueryClock([(owner, "inner")], calls=0)
    with pytest.raises(ValueError, match="needs an entry"):
        QueryClock([])
