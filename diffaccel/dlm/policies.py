"""Which rows a step computes: every cache of keys and values is a row policy over one store that holds all rows.

dKV-Cache (Ma et al., NeurIPS 2025, arXiv 2505.15781): Decode, Greedy, Prefill, PD. Keys and values of a token hardly
move between steps, except when it turns from a mask into a token; so a row is reused one step late, after it has been
computed once with its real token. Fast-dLLM (Wu et al., arXiv 2505.22618): Prefix, Dual. A policy says whose keys and
values serve the step; `rows` turns that into rows of the network. One sequence, nothing kept from step to step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from diffaccel.dlm.decode import check_whole
from diffaccel.dlm.shift import Flags, Shift, predicted, reuse_flags

FORMS = ("released", "paper")
CENTERS = ("next", "previous")


@dataclass(frozen=True)
class View:
    """What a policy knows of a sequence of L positions at the start of a step.

    Attributes:
        overall: step of the run, from 0.
        index: step within the block, from 0.
        block: positions of the block.
        prompt: positions of the prompt.
        known: (L,) positions that hold a token.
        before: the same at the start of the step before; None at the first step of a block, whatever its index.
        planned: positions this step decodes, in order, where the order is fixed in advance.
        refreshed: (L,) positions that held a token when all rows were computed last; None before the run's first step.
    """

    overall: int
    index: int
    block: range
    prompt: int
    known: Flags
    before: Flags | None
    planned: tuple[int, ...] = ()
    refreshed: Flags | None = None


class Policy(Protocol):
    """A rule for the rows of a step."""

    needs_order: ClassVar[bool]  # positions must be planned before they are predicted

    def reused(self, view: View) -> Flags:
        """(L,) tokens whose stored keys and values serve this step; none: a full step."""
        ...


@dataclass(frozen=True)
class Full:
    """No cache: every row at every step."""

    needs_order: ClassVar[bool] = False

    def reused(self, view: View) -> Flags:
        return np.zeros_like(view.known)


@dataclass(frozen=True)
class Decode:
    """dKV-Cache-Decode: a token is reused from the second step after its decoding on.

    Attributes:
        refresh: R, every R-th step of a block computes all rows; 1 computes all at every step.
        form: "released": step 1 of a block is full, too, as the code for LLaDA has it. "paper": it reuses the prompt,
            as the formula and the code for Dream have it.

    Raises:
        ValueError: a refresh below 1, or an unknown form.
    """

    refresh: int = 8
    form: Literal["released", "paper"] = "released"
    needs_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("refresh", self.refresh, 1)
        if self.form not in FORMS:
            raise ValueError(f"unknown form {self.form!r}: choose one of {', '.join(FORMS)}")

    def reused(self, view: View) -> Flags:
        second = view.index == 1 and self.form == "released"
        if view.before is None or view.index % self.refresh == 0 or second:
            return np.zeros_like(view.known)
        return view.before.copy()


@dataclass(frozen=True)
class Greedy:
    """dKV-Cache-Greedy: only what is decoded now, what was decoded last, and a few masked neighbours.

    Needs an order of decoding that does not depend on the network. Masked rows are reused, too: O(window L) a step.

    Attributes:
        refresh: R, every R-th step of a block computes all rows.
        window: masked positions added around each centre, taken left and right in turns.
        center: what the window lies around: "next", the positions decoded now (the released code), or "previous",
            those decoded last (the paper reports it as better).

    Raises:
        ValueError: a number out of range, or an unknown center.
    """

    refresh: int = 2
    window: int = 4
    center: Literal["next", "previous"] = "next"
    needs_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole("refresh", self.refresh, 1)
        check_whole("window", self.window, 0)
        if self.center not in CENTERS:
            raise ValueError(f"unknown center {self.center!r}: choose one of {', '.join(CENTERS)}")

    def reused(self, view: View) -> Flags:
        if view.before is None or view.index % self.refresh == 0:
            return np.zeros_like(view.known)
        last = np.flatnonzero(view.known & ~view.before).tolist()
        fresh = np.zeros_like(view.known)
        fresh[[*view.planned, *last]] = True
        for center in view.planned if self.center == "next" else last:
            free = np.flatnonzero(~(view.known | fresh))
            away = free - center
            # Left 1, right 1, left 2, right 2, ...: by distance, left first.
            fresh[free[np.argsort(2 * np.abs(away) + (away > 0))[: self.window]]] = True
        return ~fresh


@dataclass(frozen=True)
class Prefill:
    """dKV-Cache-Prefill: the prompt is computed at the first step of the run and never again."""

    needs_order: ClassVar[bool] = False

    def reused(self, view: View) -> Flags:
        return _positions(view, range(view.prompt if view.overall else 0))


@dataclass(frozen=True)
class PromptDecode:
    """dKV-Cache-PD: the prompt as in Prefill, generated rows as in Decode.

    Attributes:
        refresh: R, every R-th step of a block computes all generated rows.

    Raises:
        ValueError: a refresh below 1.
    """

    refresh: int = 4
    needs_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole("refresh", self.refresh, 1)

    def reused(self, view: View) -> Flags:
        if view.before is None or view.index % self.refresh == 0:
            return Prefill().reused(view)
        return view.before.copy()  # holds the prompt


@dataclass(frozen=True)
class Prefix:
    """Fast-dLLM's prefix cache: all rows at the first step of a block, then those from the block's start on."""

    needs_order: ClassVar[bool] = False

    def reused(self, view: View) -> Flags:
        return _positions(view, range(0 if view.before is None else view.block.start))


@dataclass(frozen=True)
class Dual:
    """Fast-dLLM's dual cache: all rows at the first step of a block, then those of the block."""

    needs_order: ClassVar[bool] = False

    def reused(self, view: View) -> Flags:
        return np.zeros_like(view.known) if view.before is None else ~_positions(view, view.block)


def rows_to_compute(policy: Policy, view: View, shift: Shift | None) -> Flags:
    """(L,) rows the network computes at this step; all others are reused."""
    reused = policy.reused(view)
    # Upstream's "initial" flags hold while nothing but the prompt is reused.
    return ~reuse_flags(reused, shift, initial=not reused[view.prompt :].any())


def check_rows(rows: Flags, view: View, shift: Shift | None, stored: Flags) -> None:
    """Refuse rows with which the step cannot be done.

    Args:
        rows: (L,) rows to compute.
        view: the step.
        shift: see `diffaccel.dlm.shift`. "right" lacks logits by its nature: there one position with logits is enough.
        stored: (L,) rows computed so far in this run.

    Raises:
        RuntimeError: a row is reused that was never computed, or a position to be decoded has no logits: those that
            are planned, without a plan every masked position of the block.
    """
    if not rows.shape == stored.shape == view.known.shape:
        raise RuntimeError(
            f"rows of shape {rows.shape} and stored rows of shape {stored.shape} are given for a sequence of "
            f"{len(view.known)} positions: the cache belongs to another sequence"
        )
    step = f"step {view.overall} (step {view.index} of the block {view.block.start}-{view.block.stop - 1})"
    if (unseen := ~rows & ~stored).any():
        raise RuntimeError(
            f"{step} reuses rows {_listed(unseen)}, which were never computed: the first step of a run must compute "
            "all rows"
        )
    wanted = _positions(view, view.planned or view.block) & ~view.known
    missing = wanted & ~predicted(rows, shift is not None)
    bearable = shift == "right" and not view.planned and (wanted & ~missing).any()
    if missing.any() and not bearable:
        raise RuntimeError(
            f"{step} computes no logits for the masked positions {_listed(missing)}: the rows that predict them are "
            "reused. Use another policy or, for a shifted model, shift='un_right', which keeps these rows fresh"
        )


def _positions(view: View, positions: Iterable[int]) -> Flags:
    flags = np.zeros_like(view.known)
    flags[list(positions)] = True
    return flags


def _listed(flags: Flags) -> str:
    found = np.flatnonzero(flags).tolist()
    return ", ".join(map(str, found[:8])) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
