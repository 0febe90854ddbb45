"""What a run of a diffusion language model took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffaccel.dlm.row_table import RowTable
from diffaccel.report import format_bytes


@dataclass(frozen=True)
class TextReport:
    """One call of a pipeline.

    Attributes:
        network: class name of the model.
        method: the method, as Python would write it; None for the plain run.
        sequences: texts of the batch.
        steps: steps asked for, T.
        forwards: calls of the network.
        rows: rows computed, each a position of a text in a forward; without padding.
        whole: rows there would have been had these forwards computed all.
        tokens: tokens decoded, without those that fill up after the end of a text.
        seconds: of the call, decoding only.
        cache: bytes of the stored keys and values.
        table: rows of the first text at each of its forwards.
        accepted: of self-speculative decoding: nodes that counted at each check, all texts' in a row.
        drafted: nodes that were tried, likewise.
        margin: the least by which a decision was made there; see `diffaccel.dlm.ssd.Speculation`.
        density: of sparse attention: share of the key blocks that is attended to.
    """

    network: str
    method: str | None
    sequences: int
    steps: int
    forwards: int
    rows: int
    whole: int
    tokens: int
    seconds: float
    cache: int
    table: RowTable
    accepted: Sequence[int] = ()
    drafted: Sequence[int] = ()
    margin: float | None = None
    density: float | None = None

    @property
    def cache_ratio(self) -> float:
        """Share of the rows that was reused."""
        return 1 - self.rows / self.whole if self.whole else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        result = asdict(self) | {"cache_ratio": self.cache_ratio}
        result["table"] = self.table.computed
        return result

    def __str__(self) -> str:
        lines = [f"{self.network}, {self.method or 'plain'}"]
        lines.append(
            f"  {self.tokens} tokens in {self.forwards} forwards, {self.seconds:.2f} s: "
            f"{self.tokens / max(self.seconds, 1e-9):.1f} tokens/s"
        )
        lines.append(f"  {self.rows} of {self.whole} rows computed, {self.cache_ratio:.0%} reused")
        if self.cache:
            lines.append(f"  stored keys and values {format_bytes(self.cache)}")
        if self.accepted:
            mean = sum(self.accepted) / len(self.accepted)
            lines.append(
                f"  {len(self.accepted)} checks accepted {mean:.2f} steps each of {sum(self.drafted)} drafted in all, "
                f"decided by {self.margin:.1e} at least"
            )
        if self.density is not None:
            lines.append(f"  {self.density:.0%} of the key blocks attended to")
        return "\n".join(lines)
