"""What an acceleration did in its last run: steps computed and skipped, time, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffaccel.plan import Plan


@dataclass(frozen=True)
class SiteReport:
    """Calls of one site by guidance branch: how often it was computed, how often forecast."""

    name: str
    computed: Mapping[str, int]
    skipped: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """The last run of one accelerated network.

    Attributes:
        network: class name of the network.
        method: the method, as Python would write it.
        plan: the plan of the run, None before the first.
        steps: denoising steps begun so far.
        sites: one entry a site, in order of execution.
        bound: speed-up that the plan cannot exceed: steps / computed steps.
        seconds: measured seconds by kind of call, one number a call of the network: "computed" (every site computes),
            "skipped" (none does), "mixed".
        memory: most bytes the anchors held at once.
    """

    network: str
    method: str
    plan: Plan | None
    steps: int
    sites: Sequence[SiteReport]
    bound: float
    seconds: Mapping[str, Sequence[float]]
    memory: int

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        result = asdict(self)
        result["plan"] = None if self.plan is None else [self.plan.computed(i) for i in range(len(self.plan.rows))]
        return result

    def __str__(self) -> str:
        lines = [f"{self.network} accelerated by {self.method}"]
        if self.plan is None:
            return "\n".join([*lines, f"  {len(self.sites)} sites, no run yet"])
        for counts, names in _alike(self.sites).items():
            name = names[0] if len(names) == 1 else f"{len(names)} sites"
            for branch, computed, skipped in counts:
                lines.append(f"  {name}, {branch}: {computed} computed, {skipped} skipped")
        for kind, seconds in self.seconds.items():
            mean = 1000 * sum(seconds) / len(seconds)
            lines.append(f"  {len(seconds)} {kind} calls of the network: {sum(seconds):.3f} s, {mean:.2f} ms each")
        lines.append(f"  bound {self.bound:.2f}x, anchors held {format_bytes(self.memory)}")
        return "\n".join(lines)


def _alike(sites: Sequence[SiteReport]) -> dict[tuple[tuple[str, int, int], ...], list[str]]:
    """Names of the sites that have equal counts, by those counts."""
    groups: dict[tuple[tuple[str, int, int], ...], list[str]] = {}
    for site in sites:
        branches = dict.fromkeys([*site.computed, *site.skipped])
        counts = tuple((b, site.computed.get(b, 0), site.skipped.get(b, 0)) for b in branches)
        groups.setdefault(counts, []).append(site.name)
    return groups


def format_bytes(count: float) -> str:
    """A number of bytes in B, kB, MB or GB (powers of 1000)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
