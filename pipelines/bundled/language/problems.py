"""Problems with one right answer each: running totals, running sums modulo 4, and sorting.

A prompt ends with ``=``; what follows is the answer, then nothing but ends of text. Totals and sums are sequential:
each number needs the one before it. Sorting looks at all of its input for every digit. A number and its total are as
far apart wherever they stand, which is what makes adding easy to learn.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from types import MappingProxyType
from typing import Literal

Split = Literal["train", "held-out"]

ANSWER = 20
"""Tokens of an answer with the ends of text after it; 19 are the longest answer's own."""
TERMS = 5
"""Numbers that are added up."""
DIGITS = 16
"""Digits of the problems that take digits."""


@dataclass(frozen=True)
class Problem:
    """A prompt and the only right continuation."""

    prompt: str
    answer: str

    @property
    def split(self) -> Split:
        """One problem in eight is held out, by its text."""
        return "held-out" if zlib.crc32(self.prompt.encode()) % 8 == 0 else "train"


def totals(random: Random) -> Problem:
    """Numbers of two digits and their running totals: ``sum 027,058,013=`` (of five) is answered by ``027,085,098``."""
    numbers = [random.randrange(100) for _ in range(TERMS)]
    return Problem(f"sum {_listed(numbers)}=", _listed(accumulate(numbers)))


def chain(random: Random) -> Problem:
    """Digits below 4 and their running sums modulo 4: ``mod 3102=`` (of 16 digits) is answered by ``3002``."""
    digits = [random.randrange(4) for _ in range(DIGITS)]
    sums = accumulate(digits, lambda total, digit: (total + digit) % 4)
    return Problem(f"mod {_joined(digits)}=", _joined(sums))


def sorting(random: Random) -> Problem:
    """Digits in order: ``sort 3102=`` (of 16 digits) is answered by ``0123``."""
    digits = [random.randrange(10) for _ in range(DIGITS)]
    return Problem(f"sort {_joined(digits)}=", _joined(sorted(digits)))


KINDS: MappingProxyType[str, Callable[[Random], Problem]] = MappingProxyType(
    {"totals": totals, "chain": chain, "sorting": sorting}
)
"""Makers of problems by name."""


def problems(kind: str, count: int, split: Split = "held-out", seed: int = 0) -> list[Problem]:
    """Different problems of one kind and split.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of problem is called {kind!r}; choose from {', '.join(KINDS)}")
    random = Random(f"{kind} {split} {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = KINDS[kind](random)
        if problem.split == split:
            found.setdefault(problem.prompt, problem)
    return list(found.values())


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(f"{number:03}" for number in numbers)


def _joined(digits: Iterable[int]) -> str:
    return "".join(str(digit) for digit in digits)
