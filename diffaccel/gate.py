"""A session whose method decides at every call, by what the first block does, whether the other blocks run."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

from torch import nn

from diffaccel.clock import Clock, Moment
from diffaccel.compiled import is_compiled
from diffaccel.dimensions import ByDimension
from diffaccel.feature import Feature, storage_bytes
from diffaccel.forecast import Forecaster
from diffaccel.history import Head, History
from diffaccel.methods import Method, written_out
from diffaccel.methods.first_block import FirstBlock
from diffaccel.plan import Plan
from diffaccel.report import Report
from diffaccel.residual import continuation, samples, samples_axis, stream
from diffaccel.session import Session
from diffaccel.sites import Site, check_reached
from diffaccel.structure import blocks, unwrapped

logger = logging.getLogger("diffaccel")

Value = TypeVar("Value")

FIRST, LAST = 0, 1  # the two sites

# Under these names diffusers keeps the blocks of a network's main chain; refiners before it work on other tokens.
_CHAINS = ("blocks", "transformer_blocks", "single_transformer_blocks", "layers", "temporal_transformer_blocks")


class GatedSession(Session):
    """The state of one network accelerated by a `FirstBlock`. Its two sites are the first and the last block.

    Raises:
        ValueError: as `Session`, or the network is a UNet or has one block only.
    """

    def __init__(self, network: nn.Module, method: Method, clock: Clock) -> None:
        self.gate = cast(FirstBlock, method)
        self._histories: dict[str, History] = {}  # by branch
        self._head: Head | None = None
        self._leaves: dict[str, int] = {}  # by branch, which leaf of the first block's output continues its input
        self._ran: set[int] = set()  # steps at which the last block computed for some branch
        self._changes: list[float] = []
        self._samples = 0  # of the call in progress
        super().__init__(network, method, clock)

    def find(self) -> list[Site]:
        """The first and the last block."""
        network = unwrapped(self.network)
        if is_compiled(self.network):
            raise ValueError(
                f"this {type(network).__name__} is compiled as a whole, and first_block decides between its blocks: "
                "compile the blocks instead (network.compile_repeated_blocks()), or use method='taylorseer'"
            )
        return ends(network)

    def attach(self) -> None:
        """Put sites, idle modules and hooks in place."""
        super().attach()
        self.clock.finished.append(self._say_if_nothing_was_skipped)

    def forget(self) -> None:
        """Drop what earlier steps left; what was counted and measured stays."""
        super().forget()
        self._histories, self._head, self._leaves = {}, None, {}

    def _begin(self, moment: Moment) -> None:
        self._ran, self._changes = set(), []
        super()._begin(moment)
        self.plan = None  # known when the first step is done

    def _prepared(self, steps: int) -> tuple[Plan, list[Forecaster | ByDimension]]:
        if self.gate.schedule is not None:
            self.gate.schedule.check(steps, self.sites)
        return Plan.at([0], steps), [self.gate.forecaster(site, steps) for site in self.sites]

    def report(self) -> Report:
        """What was computed and skipped; the bound counts calls, since guidance branches decide for themselves."""
        computed, skipped = (
            sum(count for (i, _), count in counts.items() if i == LAST) for counts in (self._computed, self._skipped)
        )
        return replace(super().report(), bound=(computed + skipped) / computed if computed else 1.0)

    def _computes(self, i: int, moment: Moment) -> bool:
        self._head = None
        return True  # until the first block has run

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins."""
        super().enter(moment, args, kwargs)
        self._samples = samples(dict(enumerate(args)) | kwargs)

    def leave(self, moment: Moment) -> None:
        """A call of the network ends well."""
        self._stopwatch.stop("computed" if self._computing[LAST] else "skipped")
        if moment.branch not in self._histories:
            check_reached(self.network, self.sites[LAST:], len(self.sites), self.method.level)
        # Step 0 is another network's if this one enters in mid-run; a plan computes it all the same.
        self.plan = Plan.at({0, *self._ran}, self._steps)

    def at_site(self, i: int, real: Callable[..., Any]) -> Callable[..., Any]:
        """The first block as it is installed, or the last."""
        enter = self._open if i == FIRST else self._close
        names = list(inspect.signature(type(self.sites[i].owner).forward).parameters)[1:]

        def call(*args: Any, **kwargs: Any) -> Any:
            moment = self._moment
            if moment is None:
                return real(*args, **kwargs)
            return enter(moment, lambda: real(*args, **kwargs), {**dict(zip(names, args, strict=False)), **kwargs})

        return call

    def _open(self, moment: Moment, run: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        """The first block: run it, and decide by its residual which rows compute the rest."""
        if self._head is not None:
            raise self._misfit("the first block runs twice in one call")
        result = run()
        output, start = Feature(result), stream(arguments)
        history = self._histories.get(moment.branch)
        if history is not None and not history.fits(output):  # of another number of tokens or samples
            del self._histories[moment.branch]
            history = None
        if history is None:
            self._leaves[moment.branch] = self._told(continuation, output, start)
        residual = output.leaves[self._leaves[moment.branch]] - start
        self._head = Head(output, residual, samples_axis(residual.shape, self._samples), [])
        self._head.rows = self._due(moment, self._head, history)
        self._computing = [True, any(self._head.rows)]
        self._computed[FIRST, moment.branch] += 1
        return result

    def _due(self, moment: Moment, head: Head, history: History | None) -> list[bool]:
        """By row, whether the blocks after the first have to run."""
        if history is None:
            return [True] * head.count
        rows = [self.gate.due(moment.step, skipped) for skipped in history.skipped]
        if all(rows) or self.gate.threshold == math.inf:
            return rows
        changes = history.changes(head)
        self._changes.append(max(changes))
        return [row or change > self.gate.threshold for row, change in zip(rows, changes, strict=True)]

    def _close(self, moment: Moment, run: Callable[[], Any], arguments: dict[str, Any]) -> Any:
        """The last block: what it returns, or the first block's output and what the others added to it before."""
        head, history = self._head, self._histories.get(moment.branch)
        if head is None:
            raise self._misfit("the last block runs before the first")
        key, rule = (LAST, moment.branch), cast(Forecaster, self.forecasters[LAST])
        if history is not None and not any(head.rows):
            self._skipped[key] += 1
            history.skipped = [count + 1 for count in history.skipped]
            return history.skip(head, rule, moment.step)
        result = run()
        self._computed[key] += 1
        self._ran.add(moment.step)
        if history is not None:
            return history.compute(head, result, rule, moment.step)
        self._histories[moment.branch] = self._told(History, head, result, moment.step, rule.order)
        return result

    def _told(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """What `work` returns, or the error that says which network does not fit."""
        try:
            return work(*arguments)
        except ValueError as error:
            raise self._misfit(str(error)) from error

    def _misfit(self, why: str) -> RuntimeError:
        first, last = (site.name for site in self.sites)
        return RuntimeError(
            f"first_block, which adds what the other blocks did to the output of the first one, does not fit "
            f"{type(self.network).__name__} from {first} to {last}: {why}; use method='taylorseer'"
        )

    def _held(self) -> int:
        return storage_bytes([Feature(history.tensors) for history in self._histories.values()])

    def _say_if_nothing_was_skipped(self) -> None:
        if self._steps and not self._skipped:
            changes = self._changes
            logger.warning(
                "nothing was skipped: %s computed all %d steps of this run; %s",
                written_out(self.method),
                self._steps,
                f"the first block changed by {min(changes):.3g} to {max(changes):.3g}, a larger threshold skips some"
                if changes
                else "no step was left to decide",
            )


def ends(network: nn.Module) -> list[Site]:
    """The first and the last block of a transformer, with the blocks between, which only the last one needs."""
    kind = type(network).__name__
    if hasattr(network, "down_blocks") and hasattr(network, "up_blocks"):
        raise ValueError(
            f"{kind} is a UNet, whose blocks return features of different shapes: first_block needs a transformer; use "
            "method='taylorseer'"
        )
    found = blocks(network)
    found = [item for item in found if item[0].partition(".")[0] in _CHAINS] or [
        item for item in found if "text" not in item[0]
    ]
    if len(found) < 2:
        raise ValueError(f"first_block needs two transformer blocks or more, {kind} has {len(found)}: nothing to skip")
    (first, opening), *between, (last, closing) = found
    return [Site(first, opening), Site(last, closing, idle=tuple(module for _, module in between))]
