"""The clock of policies that run a sampling loop of their own: a run is one query, a step one call of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from diffaccel.clock import Clock, Moment
from diffaccel.patch import Patch

Entry = tuple[Any, str]  # an object and the name of its method


class QueryClock(Clock):
    """Counts the network calls of a query. Timesteps are not looked at: they may rise, repeat or turn back.

    A query begins when one of the entries is called, the innermost where one calls another, and ends when it returns;
    calls that the outer one makes after it are outside of any query.
    How many calls it makes is learnt from the first query, whose calls run as if nothing were attached, and so do calls
    outside of any query, such as those of a training. Guidance by a second call of the network counts as a step.

    Args:
        entries: methods that run the sampling loop, from the outside in.
        calls: network calls a query makes; learnt if None.

    Raises:
        ValueError: no entry, or `calls` below 1.
    """

    reads_time = False

    def __init__(self, entries: Sequence[Entry], calls: int | None = None) -> None:
        if not entries:
            raise ValueError("a query clock needs an entry: the method of the policy that runs the sampling loop")
        super().__init__(steps=1 if calls is None else calls)
        self.entries, self.calls = tuple(entries), calls
        self._counted: int | None = None  # calls in the query so far; None outside of one

    def attach(self, network: nn.Module) -> None:
        """Follow the entries of the policy."""
        if not self._patches:
            self._patches = [Patch(owner, name, self._around) for owner, name in self.entries]

    def detach(self) -> None:
        """Take all watches off."""
        super().detach()
        self._counted = None

    def locate(self, time: Any = None, given: Tensor | None = None) -> Moment | None:
        """The moment of a call; None for one that is to run as if nothing were attached.

        Raises:
            RuntimeError: the query makes more calls than are known.
        """
        if self._counted is None:
            return None
        step, self._counted = self._counted, self._counted + 1
        if self.calls is None:
            return None
        if step >= self.calls:
            raise self._other(f"more than {self.calls}")
        if step == 0:
            self._begin(self.calls)
        self.step = step
        return Moment(self.run, self.calls, step, "call 0")

    def _around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def entry(*args: Any, **kwargs: Any) -> Any:
            if not self._patches:  # taken off, yet called by a wrapper on top of it
                return real(*args, **kwargs)
            before, self._counted = self._counted, 0
            try:
                result = real(*args, **kwargs)
                made = self._counted
                before = None if made else before  # this was the query, not the entry that called this one
            finally:
                self._counted = before
            if made:
                self._end(made)
            return result

        return entry

    def _end(self, made: int) -> None:
        """A query is over, after so many calls."""
        if self.calls is None:
            self.calls = self.steps = made
            return
        if made != self.calls:
            raise self._other(f"{made}")
        for call in self.finished:
            call()

    def _other(self, made: str) -> RuntimeError:
        return RuntimeError(
            f"this query makes {made} network calls, and the plan is for {self.calls}: the sampler or its number of "
            "steps was changed. Call policy.acceleration.remove() and accelerate the policy anew"
        )
