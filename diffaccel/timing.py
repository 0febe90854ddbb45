"""Seconds of each denoiser call, measured without making the host wait for a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class Stopwatch:
    """Times calls by kind. On CUDA it records events on the stream, and waits for them only when read."""

    def __init__(self) -> None:
        self._laps: list[tuple[str, Callable[[], float]]] = []
        self._start: torch.cuda.Event | float = 0.0

    def reset(self) -> None:
        """Forget all laps."""
        self._laps = []

    def start(self, device: torch.device) -> None:
        """A call begins on `device`."""
        self._start = _event() if device.type == "cuda" else time.perf_counter()

    def stop(self, kind: str) -> None:
        """The call ends; `kind` is what it will be listed under."""
        start = self._start
        if isinstance(start, torch.cuda.Event):
            end = _event()
            self._laps.append((kind, lambda: _elapsed(start, end)))
        else:
            seconds = time.perf_counter() - start
            self._laps.append((kind, lambda: seconds))

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of every lap by kind, in order."""
        result: dict[str, list[float]] = {}
        for kind, read in self._laps:
            result.setdefault(kind, []).append(read())
        return result


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _elapsed(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
