"""Which rows can be served from the cache by a model whose row p-1 predicts position p (Dream and its kin).

A row is one position of the sequence going through the network. In an ordinary masked model row p both carries token p
and predicts position p, so it may be reused once p is known. Here the two part, and upstream (horseee/dKV-Cache,
`dream_generation_utils.py`) knows three ways to decide:

- "un": row p is reused once the position it predicts, p+1, is known, even if its own token is still masked;
- "right": once its own token is known; position p+1 may then lack logits while it is masked;
- "un_right": once both are. It freezes no masked row and lacks no logits.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Flags: TypeAlias = NDArray[np.bool_]
Shift: TypeAlias = Literal["un", "right", "un_right"]
SHIFTS: tuple[Shift, ...] = get_args(Shift)


def reuse_flags(known: Flags, shift: Shift | None, initial: bool = False) -> Flags:
    """Rows that may be reused.

    Args:
        known: (L,) positions whose token counts as known.
        shift: the variant; None for a model whose row p predicts position p.
        initial: nothing but the prompt is known. Upstream then uses "un" for "right", too, and ends it with
            `known[-1]` where "un" later has `known[0]`.

    Returns:
        (L,) flags; a new array.

    Raises:
        ValueError: no flags, or an unknown shift.
    """
    _check(known)
    if shift is None:
        return known.copy()
    if shift not in SHIFTS:
        raise ValueError(f"unknown shift {shift!r}: choose one of {', '.join(SHIFTS)}, or None for an unshifted model")
    if shift == "un_right":
        both = known[:-1] & known[1:]
        return np.append(both, both[-1:] if len(both) else known)
    if shift == "right" and not initial:
        return known.copy()
    return np.append(known[1:], known[-1] if initial else known[0])


def rows_needed(masked: Flags, shifted: bool) -> Flags:
    """Rows that must be computed to have logits for every masked position.

    Args:
        masked: (L,) positions to be predicted.
        shifted: row p-1 predicts position p; row 0 also predicts position 0, which has no row before it.

    Returns:
        (L,) flags; a new array.
    """
    _check(masked)
    needed = masked.copy()
    if shifted:
        needed[:-1] = masked[1:]
        needed[-1] = False
        needed[0] |= masked[0]
    return needed


def predicted(rows: Flags, shifted: bool) -> Flags:
    """Positions that have logits if these rows are computed: the inverse of `rows_needed`.

    Args:
        rows: (L,) rows that are computed.
        shifted: row p-1 predicts position p; row 0 also predicts position 0.

    Returns:
        (L,) flags; a new array.
    """
    _check(rows)
    return np.append(rows[:1], rows[:-1]) if shifted else rows.copy()


def _check(flags: Flags) -> None:
    if flags.ndim != 1 or flags.dtype != np.bool_ or not len(flags):
        raise ValueError(f"flags must be booleans, one for each position, got {flags.dtype} of shape {flags.shape}")
