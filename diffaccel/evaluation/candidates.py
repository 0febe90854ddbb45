"""What an evaluation compares: the full run, accelerations of it, and plain runs of fewer steps."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from diffaccel.acceleration import accelerate_pipeline
from diffaccel.methods import Calibrated, Method, resolve, written_out
from diffaccel.methods.spelling import label, parse_method

Kind = Literal["full", "method", "fewer"]


@dataclass(frozen=True)
class Candidate:
    """One way to make the pictures.

    Attributes:
        name: what it is called in tables.
        kind: "full" for the run all others are held against, "method" for an acceleration of it, "fewer" for a plain
            run of fewer steps.
        steps: number of steps the pipeline is called with.
        method: the acceleration, None unless `kind` is "method".
    """

    name: str
    kind: Kind
    steps: int
    method: Method | None = None

    @classmethod
    def full(cls, steps: int) -> Candidate:
        """The unaccelerated run."""
        return cls(f"full run, {steps} steps", "full", steps)

    @classmethod
    def fewer(cls, steps: int) -> Candidate:
        """A plain run of fewer steps."""
        return cls(f"{steps} steps" if steps > 1 else "1 step", "fewer", steps)

    @property
    def written_out(self) -> str | None:
        """The method with all its options, as Python would write it."""
        return None if self.method is None else written_out(self.method)

    @property
    def folder(self) -> str:
        """A name for a folder: readable, and different for whatever makes other pictures."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        digest = hashlib.sha256(f"{self.kind} {self.steps} {self.written_out}".encode()).hexdigest()
        return f"{words}-{digest[:8]}"

    def prepared(self, pipe: Any) -> Candidate:
        """With the method's calibration found, so that it is not looked for, let alone timed, in every run.

        Raises:
            ValueError: there is none for this pipeline.
        """
        method = self.method
        return replace(self, method=method.calibrated(pipe)) if isinstance(method, Calibrated) else self

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[Any]:
        """The pipeline accelerated by the method, as it was before when this ends."""
        if self.method is None:
            yield pipe
            return
        accelerate_pipeline(pipe, self.method)
        try:
            yield pipe
        finally:
            pipe.acceleration.remove()


def accelerations(texts: Sequence[str], pipeline: str, steps: int) -> list[Candidate]:
    """The candidates meant by some texts, see `parse_method`, with the presets of the pipeline class `pipeline`.

    Raises:
        ValueError: an unknown method or value, or two texts that mean the same.
        TypeError: an option the method does not have.
    """
    result: dict[str, Candidate] = {}
    for text in texts:
        name, options = parse_method(text)
        method = resolve(name, pipeline, options)
        candidate = Candidate(label(method, options, name), "method", steps, method)
        if any(candidate.written_out == other.written_out for other in result.values()):
            raise ValueError(f"{text!r} is given twice, or means the same as another method: {candidate.written_out}")
        result[candidate.name] = candidate
    return list(result.values())
