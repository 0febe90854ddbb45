"""BAC, block-wise adaptive caching (arXiv 2506.13456): the rules by which every block gets its own schedule.

A block is a residual branch of a transformer layer: self-attention "sa", cross-attention "ca" or feed-forward "ffn".
What it last put out is added again at every step that is not in its schedule. Two rules make the schedules: the
adaptive caching scheduler (ACS) places a block's updates where its output changes, and the bubbling union (BUA)
refreshes the blocks that change most whenever a later feed-forward block is refreshed, which would otherwise take in
what they left stale.

Steps are calls of the network, counted from 0 in order of execution. The number of updates counts step 0.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar, overload

import numpy as np
import torch

from diffaccel.segments import Array, Better, best_schedules
from diffaccel.similarity import BETTER as BETTER
from diffaccel.similarity import Features, stacked, vectors
from diffaccel.similarity import similarity as similarity

Objective = Literal["anchor", "adjacent"]
Schedule = Sequence[int]

_T = TypeVar("_T")

KINDS = ("sa", "ca", "ffn")


def adaptive_schedule(
    similarity: Features, updates: int, better: Better = "higher", objective: Objective = "anchor"
) -> list[int]:
    """The best steps at which to compute a block, by how alike its outputs are (ACS).

    Args:
        similarity: shape (steps, steps): row = step that fills the cache, column = step that uses it.
        updates: steps to compute, 1 to all; step 0 is always one of them.
        better: "higher" for a similarity such as cosine, "lower" for a distance, see `BETTER`.
        objective: "anchor", as released (ky-ji/HAS): every step counts with its similarity to the computed step whose
            output it uses, see `anchor_score`. "adjacent", as printed in the paper: every step that is not computed
            counts with its similarity to the step before, see `adjacent_score`. The best choice then computes the steps
            of largest change, blind to small changes that add up.

    Returns:
        The computed steps, rising from 0. Of schedules that are equally good the one with earlier steps: "anchor"
        looks at the last step first, "adjacent" takes the first of equal changes.

    Raises:
        ValueError: a table that is not square, of fewer than two steps or not finite, a number of updates that cannot
            be, or an unknown word.
    """
    table = _table(similarity)
    steps = len(table)
    if not 1 <= updates <= steps:
        raise ValueError(f"a block can be computed at 1 to {steps} of {steps} steps, step 0 counted, got {updates}")
    if better not in ("higher", "lower"):
        raise ValueError(f'better must be "higher" or "lower", got {better!r}')
    if objective == "anchor":
        # G[a, e] = sum of table[a, t] over t = a..e.
        return best_schedules(np.triu(table).cumsum(1), updates, better).schedule(updates)
    if objective == "adjacent":
        change = -_adjacent(table) if better == "higher" else _adjacent(table)
        largest = np.argsort(-change, kind="stable")[: updates - 1]
        return [0, *sorted(int(step) + 1 for step in largest)]
    raise ValueError(f'objective must be "anchor" or "adjacent", got {objective!r}')


def anchor_score(similarity: Features, schedule: Schedule) -> float:
    """How good a schedule is: sum over all steps t of similarity[u, t], with u the last computed step up to t.

    Computed steps count with the diagonal. Arguments and errors as for `adaptive_schedule`.
    """
    table = _table(similarity)
    steps = len(table)
    computed = _checked(schedule, steps)
    anchors = np.repeat(computed, np.diff([*computed, steps]))
    return float(table[anchors, np.arange(steps)].sum())


def adjacent_score(similarity: Features, schedule: Schedule) -> float:
    """How good a schedule is by the printed form: sum of similarity[k, k - 1] over all steps k that are not computed.

    Arguments and errors as for `adaptive_schedule`.
    """
    table = _table(similarity)
    skipped = np.ones(len(table), dtype=bool)
    skipped[_checked(schedule, len(table))] = False
    return float(_adjacent(table)[skipped[1:]].sum())


def evenly_spaced(updates: int, steps: int) -> list[int]:
    """Updates at floor(i * steps / updates), the baseline; ValueError unless 1 <= updates <= steps."""
    if not 1 <= updates <= steps:
        raise ValueError(f"a block can be computed at 1 to {steps} of {steps} steps, step 0 counted, got {updates}")
    return [i * steps // updates for i in range(updates)]


def bubbling_loss(features: Features, sums: bool = True, samples: bool = False) -> float:
    """How far a block's output moves over a run, l_j of the paper: its L1 distance between steps, mean over pairs.

    Args:
        features: outputs in order of execution, shape (steps, ...); of several samples, shape (n, steps, ...).
        sums: as in the paper, the absolute differences are summed over the numbers of an output, and all steps^2
            ordered pairs count. False, as released: the mean over the numbers, and over the pairs of different steps,
            which compares blocks whose outputs have different sizes.
        samples: whether the first axis is that of samples; the loss is the mean of theirs.

    Raises:
        ValueError: fewer than two steps, no sample, no number, or NaN or infinity among them.
    """
    flat = vectors(features, samples)
    _, steps, numbers = flat.shape
    # In rising order x_(0) <= x_(1) <= ..., the pairs' absolute differences sum to sum_i (2i - steps + 1) x_(i).
    signs = 2 * torch.arange(steps, dtype=torch.float64) - (steps - 1)
    pairs = float(sum(signs @ one.double().sort(dim=0).values.sum(1) for one in flat)) / len(flat)
    return 2 * pairs / steps**2 if sums else pairs / (numbers * steps * (steps - 1) / 2)


def worst_blocks(loss: Mapping[str, float] | Sequence[float], blocks: Sequence[str], n: int) -> list[str]:
    """The `n` blocks (all, if there are fewer) of the largest loss, largest first; of equal ones the earlier.

    Arguments and errors as for `bubbling_union`.
    """
    if n < 0:
        raise ValueError(f"the number of blocks to refresh more often is 0 or more, got {n}")
    values = _in_order(loss, blocks, "loss")
    if not np.isfinite(values).all():
        raise ValueError("the loss of a block is NaN or infinite: check the features it was made from")
    return [blocks[i] for i in sorted(range(len(blocks)), key=lambda i: -values[i])[:n]]


@overload
def bubbling_union(
    schedules: Mapping[str, Schedule], loss: Mapping[str, float] | Sequence[float], blocks: Sequence[str], n: int
) -> dict[str, list[int]]: ...
@overload
def bubbling_union(
    schedules: Sequence[Schedule], loss: Mapping[str, float] | Sequence[float], blocks: Sequence[str], n: int
) -> list[list[int]]: ...
def bubbling_union(
    schedules: Mapping[str, Schedule] | Sequence[Schedule],
    loss: Mapping[str, float] | Sequence[float],
    blocks: Sequence[str],
    n: int,
) -> dict[str, list[int]] | list[list[int]]:
    """Refresh the blocks of the largest loss whenever a feed-forward block that runs after them is refreshed (BUA).

    After a block run the feed-forward blocks of deeper layers and, if it is an attention, that of its own layer. Each
    of the `n` takes over their schedules, as they were before any union. No other schedule changes.

    Args:
        schedules: computed steps of each block, by its name, or in the order of `blocks`.
        loss: see `bubbling_loss`, by name or in the order of `blocks`.
        blocks: names in order of execution; the last part of a name is its kind, as in "decoder.layers.0.ffn".
        n: how many blocks to refresh more often. 0 changes nothing, more than there are means all.

    Returns:
        Schedules in the form they were given in.

    Raises:
        ValueError: blocks without schedule or loss, or the other way round, a name that comes twice or ends with no
            kind, a schedule that does not rise from 0, a loss that is not finite, or n below 0.
    """
    _check_names(blocks)
    original = [_checked(schedule) for schedule in _in_order(schedules, blocks, "schedule")]
    union = [set(schedule) for schedule in original]
    for name in worst_blocks(loss, blocks, n):
        upstream = blocks.index(name)
        for later in range(upstream + 1, len(blocks)):
            if kind_of(blocks[later]) == "ffn":
                union[upstream].update(original[later])
    rows = [sorted(schedule) for schedule in union]
    return dict(zip(blocks, rows, strict=True)) if isinstance(schedules, Mapping) else rows


def kind_of(block: str) -> str:
    """The kind of a block, "sa", "ca" or "ffn": the last part of its name."""
    return block.rpartition(".")[-1]


def _table(similarity: Features) -> Array:
    table = np.asarray(stacked(similarity).detach().cpu().double().numpy(), dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise ValueError(f"a table of similarities must have shape (steps, steps), got {table.shape}")
    if len(table) < 2:
        raise ValueError(f"nothing can be reused in a run of {len(table)} steps: give a table of at least 2")
    if not np.isfinite(table).all():
        raise ValueError("the table of similarities holds NaN or infinity: check the features it was made from")
    return table


def _adjacent(table: Array) -> Array:
    """Similarity of steps 1, 2, ... to the step before each."""
    return np.diagonal(table, -1)


def _checked(schedule: Schedule, steps: int | None = None) -> list[int]:
    computed = [operator.index(step) for step in schedule]
    rises = all(before < after for before, after in itertools.pairwise(computed))
    if not computed or computed[0] != 0 or not rises:
        raise ValueError(f"a schedule lists the computed steps, rising from 0, got {computed}")
    if steps is not None and computed[-1] >= steps:
        raise ValueError(f"the schedule computes step {computed[-1]} of a run of {steps} steps (0 to {steps - 1})")
    return computed


def _check_names(blocks: Sequence[str]) -> None:
    if len(set(blocks)) < len(blocks):
        raise ValueError("every block needs a name of its own, so that its schedule is found")
    for block in blocks:
        if kind_of(block) not in KINDS:
            raise ValueError(f"the name of block {block!r} must end with its kind: {', '.join(KINDS)}")


def _in_order(given: Mapping[str, _T] | Sequence[_T], blocks: Sequence[str], what: str) -> list[_T]:
    if not isinstance(given, Mapping):
        if len(given) != len(blocks):
            raise ValueError(f"give one {what} for each of the {len(blocks)} blocks, got {len(given)}")
        return list(given)
    if differing := sorted(set(given) ^ set(blocks)):
        raise ValueError(f"give one {what} for each block, by its name; missing or unknown: {', '.join(differing)}")
    return [given[block] for block in blocks]
