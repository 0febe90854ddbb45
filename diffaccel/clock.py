"""Clocks: which step of which run, and which guidance branch, a call of the denoiser belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffaccel.calls import Branches
from diffaccel.patch import Patch


@dataclass(frozen=True)
class Moment:
    """Where a call of the denoiser stands.

    Attributes:
        run: number of the run; it changes when a generation begins.
        steps: number of steps of this run.
        step: index of the step, from 0 in order of execution.
        branch: the guidance branch, by the name the pipeline announces, else "call 0", "call 1", ... within a step.
    """

    run: int
    steps: int
    step: int
    branch: str


class Clock:
    """Counts the steps of any loop that calls a network, by the timestep the network is given.

    Another timestep means another step, the same one another guidance branch, one that turns back a new run. A timestep
    that lies on a GPU has to be waited for, once a call; pipelines get a `PipelineClock`, which does not.

    Args:
        steps: number of steps of every run.

    Raises:
        ValueError: `steps` below 1.
    """

    reads_time = True  # whether steps can be told by timesteps only

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.run, self.step, self.steps = -1, 0, steps
        self.finished: list[Callable[[], None]] = []  # called when the last step of a run is done
        self._branches = Branches()
        self._context: str | None = None
        self._time: Any = None
        self._direction = 0
        self._interrupted = False
        self._patches: list[Patch] = []

    def attach(self, network: nn.Module) -> None:
        """Follow the names of guidance branches, which pipelines announce by diffusers' `network.cache_context`."""
        if not hasattr(network, "cache_context"):
            return

        def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
            def cache_context(name: str, *args: Any, **kwargs: Any) -> Any:
                self._context = name
                return real(name, *args, **kwargs)

            return cache_context

        self._patches.append(Patch(network, "cache_context", wrap))

    def detach(self) -> None:
        """Take all watches off."""
        while self._patches:
            self._patches.pop().remove()

    def interrupt(self) -> None:
        """A call failed: whatever comes next begins a run."""
        self._interrupted = True

    def locate(self, time: Any, given: Tensor | None = None) -> Moment | None:
        """The moment of a call; None, which some clocks answer, for one that is to run as if nothing were attached.

        Args:
            time: the timestep it is given, a number, or a tensor, whose mean counts.
            given: the conditioning it is given, which tells guidance branches apart; without any, their order does.

        Raises:
            RuntimeError: the loop makes more steps than were announced.
        """
        move = self._move(time)
        if self.run < 0 or self._interrupted or move < 0:
            self._begin(self.steps)
        elif move > 0:
            self._next_step()
            if self.step >= self.steps:
                raise RuntimeError(
                    f"this loop makes more than the {self.steps} steps announced: "
                    "give accelerate(..., steps=...) the number of steps the loop makes"
                )
        return self._moment(time, given)

    def _moment(self, time: Any, given: Tensor | None) -> Moment:
        announced, self._context = self._context, None
        branch = self._branches.name(announced, given)
        self._time = time
        return Moment(self.run, self.steps, self.step, branch)

    def _begin(self, steps: int) -> None:
        self.run, self.step, self.steps = self.run + 1, 0, steps
        self._branches, self._time, self._direction, self._interrupted = Branches(), None, 0, False

    def _next_step(self) -> None:
        self.step += 1
        self._branches.next_step()

    def _move(self, time: Any) -> int:
        """0 if `time` is that of the last call, 1 if it moved on, -1 if it turned back; the first move sets the way."""
        if self._time is None or time is None:
            return 0
        change = _value(time) - _value(self._time)
        sign = (change > 0) - (change < 0)
        self._direction = self._direction or sign
        return sign * self._direction


class PipelineClock(Clock):
    """Counts the steps of a diffusers pipeline by its scheduler, without waiting for a GPU.

    A pipeline calls its denoiser once or several times, then `scheduler.step`, so the scheduler says where a step ends.
    A step is one evaluation: solvers that visit a time twice (Heun, PNDM) list it twice in `scheduler.timesteps`.

    Args:
        pipe: a pipeline with a scheduler, which may be swapped for another at any time between runs.
        name: the attribute under which the pipeline keeps it.
    """

    reads_time = False

    def __init__(self, pipe: Any, name: str = "scheduler") -> None:
        super().__init__(steps=1)
        self.pipe, self.name = pipe, name
        self._scheduler: Any = None
        self._timesteps: Any = None

    def detach(self) -> None:
        """Take all watches off."""
        super().detach()
        self._watch(None)

    def locate(self, time: Any, given: Tensor | None = None) -> Moment:
        """The moment of a call; `time` is None if the network takes no timestep."""
        scheduler = getattr(self.pipe, self.name)
        if scheduler is not self._scheduler:
            self._watch(scheduler)
        # `set_timesteps` makes a new tensor, so a run begins clean however the last one ended.
        if scheduler.timesteps is not self._timesteps or self.step >= self.steps or self._interrupted:
            self._timesteps = scheduler.timesteps
            self._begin(_steps_left(scheduler, time))
        elif _on_host(time) or self._branches.repeated(self._context, given):
            # Another pipeline may share this network and drive it by a scheduler of its own: then times tell.
            move = self._move(time)
            if move > 0 and self._branches:
                self._next_step()
            if move < 0 or self.step >= self.steps:
                self._begin(_steps_left(scheduler, time))
        return self._moment(time, given)

    def _step_done(self) -> None:
        self._next_step()
        if self.step == self.steps:
            for call in self.finished:
                call()

    def _watch(self, scheduler: Any) -> None:
        """Have `_step_done` called after every `scheduler.step`, and no longer after that of the scheduler before."""
        if self._scheduler is not None:
            _StepWatch.of(self._scheduler).drop(self._step_done)
        self._scheduler = scheduler
        if scheduler is not None:
            _StepWatch.of(scheduler).listeners.append(self._step_done)


class _StepWatch(Patch):
    """Calls its listeners after each `scheduler.step`. Clocks that share a scheduler share one watch, in any order."""

    def __init__(self, scheduler: Any) -> None:
        self.listeners: list[Callable[[], None]] = []
        super().__init__(scheduler, "step", self._wrap)

    @classmethod
    def of(cls, scheduler: Any) -> _StepWatch:
        """The watch on `scheduler`, a new one if it has none."""
        patch = getattr(vars(scheduler).get("step"), "patch", None)
        return patch if isinstance(patch, cls) else cls(scheduler)

    def drop(self, listener: Callable[[], None]) -> None:
        """Forget one listener; the last one takes the watch off."""
        if listener in self.listeners:
            self.listeners.remove(listener)
        if not self.listeners:
            self.remove()

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            for listener in tuple(self.listeners):
                listener()
            return result

        return step


def _steps_left(scheduler: Any, time: Any) -> int:
    """Evaluations from here to the end of `scheduler.timesteps`: image-to-image starts in the middle."""
    begin = getattr(scheduler, "begin_index", None)
    if begin is None and time is None:
        begin = 0
    elif begin is None:
        times = scheduler.timesteps.tolist()
        begin = times.index(_value(time)) if _value(time) in times else 0
    return len(scheduler.timesteps) - int(begin)


def _on_host(time: Any) -> bool:
    return not isinstance(time, Tensor) or time.device.type == "cpu"


def _value(time: Any) -> float:
    """One number for a time; samples, frames or tokens may have times of their own, which fall or rise together."""
    return float(time.detach().cpu().double().mean()) if isinstance(time, Tensor) else float(time)
