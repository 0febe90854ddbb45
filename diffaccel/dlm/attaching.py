"""The handle of an acceleration of a text pipeline: what was chosen, what it did, and the way to take it off."""

from __future__ import annotations

from typing import Any

from diffaccel.dlm.adapters import Denoiser
from diffaccel.dlm.decoding import Decoding, TextMethod
from diffaccel.dlm.report import TextReport
from diffaccel.dlm.row_table import RowTable
from diffaccel.handle import Handle

OWN, LLADA2, GEMMA = "TextDiffusionPipeline", "LLaDA2Pipeline", "DiffusionGemmaPipeline"
"""Class names of the pipelines that write text."""


def writes_text(pipe: Any) -> bool:
    """Whether a pipeline is one of a diffusion language model."""
    return _family(pipe) is not None


def attach(pipe: Any, method: TextMethod) -> None:
    """Accelerate a pipeline that writes text; `pipe.acceleration` then holds the handle.

    Raises:
        ValueError: it is accelerated already, or the method cannot accelerate it. The pipeline is as it was.
    """
    if getattr(pipe, "acceleration", None) is not None:
        raise ValueError(f"{type(pipe).__name__} is accelerated already: call pipe.acceleration.remove() first")
    if _family(pipe) == GEMMA:
        from diffaccel.dlm.gemma import refuse

        refuse(pipe, method)
    if _family(pipe) == LLADA2:
        from diffaccel.dlm.llada2 import Llada2Acceleration

        Llada2Acceleration(method, pipe)
    else:
        TextAcceleration(method, pipe)


def _family(pipe: Any) -> str | None:
    names = {kind.__name__ for kind in type(pipe).__mro__}
    return next((name for name in (OWN, LLADA2, GEMMA) if name in names), None)


class TextAcceleration(Handle):
    """As `diffaccel.Acceleration`, for a `TextDiffusionPipeline`, whose calls ask it how to decode.

    Attributes:
        method: the method with all its options.
    """

    def __init__(self, method: TextMethod, pipe: Any) -> None:
        self.method, self._pipe = method, pipe
        self.last: TextReport | None = None
        # What the model rules out is refused here, what a call rules out when it comes: no method refuses this one.
        how = method.applied(pipe.decoding(remasking="random"))
        if how.policy is not None:
            Denoiser(pipe.model).check_rows_can_be_cached()
        pipe.acceleration = self

    def applied(self, to: Decoding) -> Decoding:
        """The accelerated run. Raises ValueError if the method cannot accelerate it."""
        return self.method.applied(to)

    @property
    def plan(self) -> RowTable:
        """Rows computed at each forward of the last run, for its first text.

        Raises:
            RuntimeError: before the first run; how many forwards there will be is not known.
        """
        return self.report().table

    def report(self) -> TextReport:
        """What the last run took.

        Raises:
            RuntimeError: before the first run.
        """
        if self.last is None:
            raise RuntimeError("nothing has been decoded since the pipeline was accelerated: call it first")
        return self.last

    def remove(self) -> None:
        """Take it off. Calling it again does nothing."""
        if vars(self._pipe).get("acceleration") is self:
            del self._pipe.acceleration

    def __str__(self) -> str:
        return str(self.last) if self.last else f"{self.method}, no run yet"
