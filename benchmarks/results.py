"""From measurements to the recorded result: means with intervals, equal-cost comparisons, and where it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import FEWER, Case, accelerated, full
from scipy import stats

Times = Mapping[tuple[int, str], Mapping[str, Any]]  # by batch and name of the case


def assemble(
    steps: int,
    quality: Mapping[str, Mapping[str, Any]],
    times: Times,
    equal: Mapping[tuple[int, str], Case | None],
    batches: Sequence[int],
) -> dict[str, Any]:
    """The recorded result of all cases that were compared with one full run."""
    plain = {case.run: case for n in range(1, steps) if (case := Case(steps, FEWER, n)).name in quality}
    cases = []
    for case in [*plain.values(), *accelerated(steps)]:
        measured = quality[case.name]
        computed = round(measured["computed"])
        entry = {
            "name": case.name,
            "family": case.family,
            "interval": case.interval,
            "order": case.order,
            "forecast": case.forecast,
            "computed": computed,
            "bound": steps / computed,
            **fidelity(measured),
            "time": {
                batch: speed(times[batch, case.timed.name], steps / computed)
                for batch in batches
                if (batch, case.timed.name) in times
            },
        }
        if case.family != FEWER:
            entry["timed_as"] = case.timed.name
            entry["equal_steps"] = against(measured, plain[computed], quality)
            entry["equal_time"] = {
                batch: against(measured, other, quality) | {"ratio": times[batch, other.name]["ratio"]}
                for batch in batches
                if (other := equal[batch, case.name]) is not None
            }
        cases.append(entry)
    reference = quality[full(steps).name]
    return {
        "steps": steps,
        "pictures": len(reference["exact"]),
        "full": {
            "exact": share(reference["exact"]),
            "seconds": {batch: full_seconds(times, batch) for batch in batches},
        },
        "contention": {batch: contention(times, batch) for batch in batches},
        "cases": cases,
    }


def fidelity(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Fidelity to the full run and captions read exactly, with 95% intervals."""
    return {
        "psnr": mean(measured["psnr"]),
        "relative_l2": mean(measured["relative_l2"]),
        "exact": share(measured["exact"]),
        "same_as_full": share(measured["same"]),
    }


def against(measured: Mapping[str, Any], plain: Case, quality: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A plain run of fewer steps, and how much better a case is than it, by pairs of pictures."""
    other = quality[plain.name]
    gain = np.subtract(measured["psnr"], other["psnr"])
    return {"steps": plain.run, **fidelity(other), "psnr_gain": mean(gain)}


def speed(timing: Mapping[str, Any], bound: float) -> dict[str, Any]:
    """The timing with the speed-up it means and the part of the bound that is reached."""
    return {**timing, "speed_up": 1 / timing["ratio"], "bound_reached": 1 / timing["ratio"] / bound}


def mean(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean over pictures with a 95% bootstrap interval."""
    result = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    return {"mean": float(np.mean(values)), "low": float(result.low), "high": float(result.high)}


def share(hits: Sequence[bool]) -> dict[str, float]:
    """Share of hits with a 95% Wilson interval."""
    interval = stats.binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return {"mean": sum(hits) / len(hits), "low": interval.low, "high": interval.high}


def full_seconds(times: Times, batch: int) -> dict[str, float]:
    """Median time of the full run, over all rounds of all groups of cases."""
    groups = {tuple(timing["full_seconds"]): timing for (size, _), timing in times.items() if size == batch}.values()
    return {
        kind: float(np.median([second for timing in groups for second in timing[f"full_{kind}"]]))
        for kind in ("seconds", "cpu_seconds")
    }


def contention(times: Times, batch: int) -> float:
    """Wall time over processor time of all timed runs: 1 on a machine that nothing else uses."""
    timings = [timing for (size, _), timing in times.items() if size == batch]
    return sum(sum(t["seconds"]) for t in timings) / sum(sum(t["cpu_seconds"]) for t in timings)


def environment(command: str) -> dict[str, Any]:
    """Where, when, with what and by which command a result was measured."""
    packages = ("diffaccel", "torch", "diffusers", "transformers", "numpy")
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": commit(),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "system": platform.platform(terse=True),
            "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
    }


def commit() -> str | None:
    """The commit that is checked out, None outside of a repository."""
    command = ["git", "rev-parse", "HEAD"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
