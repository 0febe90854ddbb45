"""Schedules of blocks, with all that tells where they fit, and their file."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

WHAT = "schedules of blocks"
FORMAT = 1

_AGAIN = "make the schedules anew: give the method calibration=observations, then save them"


@dataclass(frozen=True)
class BlockSchedules:
    """At which calls of a network each of its blocks is computed, and for which network that was found out.

    Attributes:
        rows: by block, in order of execution, the computed steps, rising from 0.
        steps: calls of the network in a run, K.
        rule: name of the method that made them, such as "bac".
        settings: of the method: words, numbers, None.
        losses: by block, what the bubbling union ranks them by; None if the rule has no union.
        bubbled: blocks that the union refreshes more often, the largest loss first.
        network: class name of the network.
        layers: its number of layers.
        width: numbers a block adds to each token.
        scheduler: class name of the pipeline's scheduler.

    Raises:
        ValueError: no block, no step, steps of a block that do not rise from 0 or go beyond the run, a loss that is not
            finite, or losses and bubbled blocks that are not those of `rows`.
    """

    rows: Mapping[str, tuple[int, ...]]
    steps: int
    rule: str
    settings: Mapping[str, Any]
    losses: Mapping[str, float] | None
    bubbled: tuple[str, ...]
    network: str
    layers: int
    width: int
    scheduler: str

    def __post_init__(self) -> None:
        for name, value in (
            # Copies, so that nobody else changes them.
            ("rows", {block: tuple(row) for block, row in self.rows.items()}),
            ("settings", dict(self.settings)),
            ("losses", None if self.losses is None else dict(self.losses)),
            ("bubbled", tuple(self.bubbled)),
        ):
            object.__setattr__(self, name, value)
        if not self.rows:
            raise ValueError("schedules need at least one block")
        for block, row in self.rows.items():
            rises = all(before < after for before, after in itertools.pairwise(row))
            if not row or row[0] != 0 or not rises or row[-1] >= self.steps:
                raise ValueError(
                    f"the computed steps of {block} must rise from 0 and lie within a run of {self.steps} steps, "
                    f"got {list(row)}"
                )
        if self.losses is not None and self.losses.keys() != self.rows.keys():
            raise ValueError("losses must be those of the blocks that have schedules, each of them")
        if not all(map(math.isfinite, (self.losses or {}).values())):
            raise ValueError("the loss of a block is NaN or infinite: check the features it was made from")
        if unknown := set(self.bubbled) - set(self.rows):
            raise ValueError(f"blocks without a schedule cannot be refreshed more often: {', '.join(sorted(unknown))}")

    @property
    def mean_updates(self) -> float:
        """Computed steps of a block, mean over blocks: what to compare methods at, not the number asked for."""
        return sum(map(len, self.rows.values())) / len(self.rows)

    def as_data(self) -> dict[str, Any]:
        """All of it in words, numbers, lists and mappings, as files have it."""
        lists = {"rows": {block: list(row) for block, row in self.rows.items()}, "bubbled": list(self.bubbled)}
        return {"what": WHAT, "format": FORMAT, **asdict(self), **lists}

    @classmethod
    def from_data(cls, data: Any) -> BlockSchedules:
        """What `as_data` gave, or a file held. Raises ValueError if it is anything else."""
        return _parsed(data)

    def save(self, path: str | Path) -> None:
        """Write them as JSON, one line a block.

        Raises:
            TypeError: a setting that JSON does not know.
        """
        data = self.as_data()
        rows, losses = data.pop("rows"), data.pop("losses")
        parts = {key: json.dumps(value, allow_nan=False) for key, value in data.items()}
        parts |= {"losses": _lines(losses), "rows": _lines(rows)}
        text = ",\n".join(f" {json.dumps(key)}: {value}" for key, value in parts.items())
        Path(path).write_text(f"{{\n{text}\n}}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> BlockSchedules:
        """Schedules from a file of `save`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, holds something else, or was written by a newer diffaccel.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path} with schedules of blocks")
        try:
            return _parsed(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:  # of JSON's and of letters that are none, too
            raise ValueError(f"{path} cannot be used: {error}") from error

    def check(
        self,
        names: Sequence[str],
        steps: int,
        network: str | None = None,
        width: int | None = None,
        scheduler: str | None = None,
    ) -> None:
        """Raise ValueError, with all that differs, unless they fit a run.

        Args:
            names: of the network's blocks, in any order.
            steps: calls of the network in a run.
            network: its class name; what is None is not compared.
            width: numbers a block adds to each token.
            scheduler: class name of the pipeline's scheduler.
        """
        found = {"network": network, "width": width, "scheduler": scheduler, "steps": steps}
        differing = [
            f"{name} {getattr(self, name)}, here {value}"
            for name, value in found.items()
            if value is not None and value != getattr(self, name)
        ]
        if missing := [name for name in names if name not in self.rows]:
            differing.append(f"no schedule for {_some(missing)}")
        if unknown := [name for name in self.rows if name not in set(names)]:
            differing.append(f"schedules for {_some(unknown)}, which the network does not have")
        if differing:
            only_steps = len(differing) == 1 and steps != self.steps
            advice = f"run {self.steps} steps, or {_AGAIN}" if only_steps else _AGAIN
            raise ValueError(f"these schedules are made for something else ({'; '.join(differing)}): {advice}")


_TYPES: Mapping[str, tuple[type, ...]] = {
    "rows": (dict,),
    "steps": (int,),
    "rule": (str,),
    "settings": (dict,),
    "losses": (dict, type(None)),
    "bubbled": (list,),
    "network": (str,),
    "layers": (int,),
    "width": (int,),
    "scheduler": (str,),
}


def _parsed(data: Any) -> BlockSchedules:
    """Schedules from what a file held; ValueError if it is anything else."""
    if not isinstance(data, dict) or data.get("what") != WHAT:
        raise ValueError(f"it does not hold {WHAT}: give a file that was saved by BlockSchedules.save")
    if not _is(data.get("format"), (int,)) or data["format"] < 1:
        raise ValueError(f"its format is {data.get('format')!r}, not {FORMAT}: {_AGAIN}")
    if data["format"] > FORMAT:
        raise ValueError(f"its format is {data['format']}, this diffaccel knows up to {FORMAT}: install a newer one")
    for field in fields(BlockSchedules):
        if field.name not in data:
            raise ValueError(f"it lacks {field.name!r}: {_AGAIN}")
        if not _is(data[field.name], _TYPES[field.name]):
            raise ValueError(f"its {field.name!r} is {data[field.name]!r:.80}, which cannot be: {_AGAIN}")
    for block, row in data["rows"].items():
        if not _is(row, (list,)) or not all(_is(step, (int,)) for step in row):
            raise ValueError(f"the row of {block} must be a list of whole numbers, got {row!r:.80}: {_AGAIN}")
    if not all(_is(loss, (int, float)) for loss in (data["losses"] or {}).values()):
        raise ValueError(f"losses must be numbers: {_AGAIN}")
    if not all(_is(block, (str,)) for block in data["bubbled"]):
        raise ValueError(f"bubbled blocks must be names: {_AGAIN}")
    return BlockSchedules(**{field.name: data[field.name] for field in fields(BlockSchedules)})


def _is(value: Any, types: tuple[type, ...]) -> bool:
    """Whether a value is of one of the types; true and false are no numbers here."""
    return isinstance(value, types) and not isinstance(value, bool)


def _lines(table: Mapping[str, Any] | None) -> str:
    """A mapping as JSON, one line an entry."""
    if table is None:
        return "null"
    inside = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in table.items())
    return f"{{\n{inside}\n }}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
