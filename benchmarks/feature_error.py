"""How far forecasts of the bundled pipeline's features are off, by rule and interval; how stable HyCa's clusters are.

    python benchmarks/feature_error.py --output benchmarks/feature_error.json

Rules are calibrated on prompts of the training split and scored on held-out prompts with other seeds, from the moments
of uncached runs at level model: anchors are exact, so errors of earlier skipped steps do not feed back. They are given
over all skipped steps, and over those alone whose last three anchors are evenly spaced, for which HyCa chooses its
solvers; the others follow the warm-up, where anchors are few or close. Intervals are 95% Student intervals over groups
of prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import environment
from scipy import stats

from diffaccel import Plan, TaylorSeer
from diffaccel.calibration import Calibration, record
from diffaccel.clusters import COUNTS, amplification, choose, describe, solver_errors
from diffaccel.dimensions import ByDimension
from diffaccel.forecast import POOL, Forecaster, Grouped, Solver
from diffaccel.methods.fitted import Fitted
from diffaccel.methods.hyca import HyCa
from diffaccel.moments import Moments
from diffaccel.pipelines import bundled, image
from diffaccel.sites import Site, sites
from diffaccel.trace import Trace

STEPS, INTERVALS, WARMUP, LEAVES = (28, 50), range(3, 9), 3, {0: "text tokens", 1: "picture tokens"}
CALIBRATION, GROUPS, GROUP, SINGLE = 64, 8, 16, 12  # prompts; groups of held-out prompts, prompts each; runs of one
KINDS = {"all": "all skipped steps", "even": "skipped steps with even anchors"}
SEED, HELD_OUT_SEED, SINGLE_SEED = 1000, 5000, 9000
MAIN_CLUSTERS = 4  # what the recorded choices of solvers are for

Rule = Forecaster | ByDimension


def calibrate(pipe: Any, steps: int) -> Trace:
    """The trace that rules are chosen and fitted on."""
    return record(pipe, bundled.prompts("train")[:CALIBRATION], steps, batch=GROUP, seed=SEED)


def rules(site: Site, trace: Trace, interval: int) -> Iterator[tuple[str, Rule]]:
    """All rules that are compared at one interval, by name; those of HyCa and Fitted are worked out on `trace`."""
    steps, calibration = trace.steps, Calibration({trace.steps: trace})
    shared: dict[str, Any] = {"interval": interval, "warmup": WARMUP, "last": True}
    yield "reuse", TaylorSeer(order=0, **shared).forecaster(site, steps)
    yield "Taylor 1", TaylorSeer(order=1, **shared).forecaster(site, steps)
    yield "Taylor 2", TaylorSeer(order=2, **shared).forecaster(site, steps)
    yield "Newton 2", TaylorSeer(order=2, forecast="newton", **shared).forecaster(site, steps)
    for name in ("rk2", "ab2", "am3", "bdf2_extrapolated"):  # reuse and Taylor 1 are the other two of HyCa's pool
        yield f"{name} alone", Solver(name, max(0, WARMUP - 2), needs=3)
    shared["calibration"] = calibration
    for clusters in (2, 4, 8):
        yield f"HyCa C={clusters}", HyCa(clusters=clusters, **shared).forecaster(site, steps)
    yield "HyCa strict C=4", HyCa(clusters=4, strict=True, **shared).forecaster(site, steps)
    yield "HyCa each dimension", own_solvers(trace.networks["transformer"][site.name], interval)
    for clusters, (anchors, feedback) in product((1, 4, 0), ((2, 0.0), (3, 0.0), (3, 0.5))):
        groups = {0: "each dimension", 1: "one group"}.get(clusters, f"{clusters} clusters")
        fitted = Fitted(clusters=clusters, anchors=anchors, feedback=feedback, **shared)
        name = f"Fitted {groups}, {anchors} anchors" + f", feedback {feedback}" * (feedback > 0)
        yield name, fitted.forecaster(site, steps)


def own_solvers(leaves: Sequence[Moments], interval: int) -> ByDimension:
    """The end of HyCa's idea: every dimension is a cluster of its own."""
    names: list[str] = []
    labels = {}
    for moments in leaves:
        labels[moments.leaf] = torch.arange(moments.dims) + len(names)
        names += own_names(moments, interval)
    return ByDimension(Grouped(tuple(Solver(name, max(0, WARMUP - 2), needs=3) for name in names)), labels)


def own_names(moments: Moments, interval: int) -> tuple[str, ...]:
    """The solver of HyCa's pool that suits each dimension best."""
    errors = solver_errors(moments, POOL, interval, interval - 1)
    return choose(errors, range(moments.dims), {name: amplification(name) for name in POOL})


def weights(rule: Rule, leaf: int, times: Sequence[int], target: int) -> torch.Tensor:
    """Weights of a rule on the anchors at `times`, shape (anchors,) or (anchors, dims)."""
    floats = [float(time) for time in times]
    if isinstance(rule, ByDimension):
        return rule.weights(floats, float(target))[leaf].double()
    return torch.tensor(rule.weights(floats, float(target)), dtype=torch.float64)


def skipped(plan: Plan, interval: int, even: bool) -> list[int]:
    """Steps that the plan skips; with `even`, those alone whose last three anchors are `interval` apart."""
    computed = plan.computed()
    result = []
    for s in range(plan.steps):
        last = [a for a in computed if a < s][-3:]
        if s not in computed and not (even and np.diff(last).tolist() != [interval] * 2):
            result.append(s)
    return result


def relative_error(moments: Moments, rule: Rule, plan: Plan, targets: Sequence[int]) -> float:
    """Root mean square error over the steps `targets`, relative to the feature's root mean square there."""
    total = torch.zeros(moments.dims, dtype=torch.float64)
    for s in targets:
        times = [a for a in plan.computed() if a < s][::-1][: rule.order + 1]
        total += moments.error(weights(rule, moments.leaf, times, s), times, s)
    return round(float((total.sum() / len(targets) / moments.power(targets).sum()).sqrt()), 6)


def mean(values: Sequence[float]) -> dict[str, float]:
    """Mean over groups with a 95% Student interval."""
    centre, error = float(np.mean(values)), float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, centre, error)
    return {"mean": round(centre, 6), "low": round(float(low), 6), "high": round(float(high), 6)}


def errors(site: Site, trace: Trace, held_out: Sequence[Trace]) -> Iterator[dict[str, Any]]:
    """The error of every rule at every interval, one row a leaf."""
    groups = [one.networks["transformer"][site.name] for one in held_out]
    for interval in INTERVALS:
        plan = Plan.every(interval, trace.steps, WARMUP, last=True)
        targets = {kind: skipped(plan, interval, kind == "even") for kind in KINDS}
        for name, rule in rules(site, trace, interval):
            for leaf in LEAVES:
                row = {"steps": trace.steps, "leaf": leaf, "interval": interval, "rule": name}
                row["computed"] = len(plan.computed())
                for kind, steps in targets.items():
                    values = [relative_error(leaves[leaf], rule, plan, steps) for leaves in groups]
                    row[kind] = {"skipped": len(steps), **mean(values), "groups": values}
                yield row


def choices(site: Site, trace: Trace, leaf: int) -> dict[str, Any]:
    """Which solver HyCa gives each cluster, and which one would suit each dimension best, by interval."""
    calibration = Calibration({trace.steps: trace})
    moments = calibration.moments(None, site.name, trace.steps)[leaf]
    labels = calibration.labels(None, site.name, leaf, MAIN_CLUSTERS, trace.steps)
    intervals = {
        str(interval): {
            "clusters": HyCa(interval=interval, clusters=MAIN_CLUSTERS).solvers(moments, labels),
            "strict": HyCa(interval=interval, clusters=MAIN_CLUSTERS, strict=True).solvers(moments, labels),
            "dimensions": own_names(moments, interval),
        }
        for interval in INTERVALS
    }
    return {"steps": trace.steps, "leaf": leaf, "labels": labels, "intervals": intervals}


def stability(site: Site, trace: Trace, single: Trace) -> Iterator[dict[str, Any]]:
    """Silhouette and adjusted Rand index: between runs of single prompts, and between those of the calibration."""
    for leaf, clusters in product(LEAVES, COUNTS):
        for one in (single, trace):
            found = describe(one.networks["transformer"][site.name][leaf], clusters, one.runs)
            prompts = 1 if one is single else GROUP
            yield {
                "steps": one.steps,
                "leaf": leaf,
                "clusters": clusters,
                "runs": one.runs,
                "prompts": prompts,
                **found,
            }


def print_errors(rows: Sequence[Mapping[str, Any]], steps: int, leaf: int, kind: str) -> None:
    """A Markdown table of relative errors in percent, the half-width of the interval after the sign."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        if (row["steps"], row["leaf"]) == (steps, leaf):
            error = row[kind]
            half = error["high"] - error["mean"]
            cells.setdefault(row["rule"], []).append(f"{100 * error['mean']:.2f} ± {100 * half:.2f}")
    print(f"\nRelative error (%), {LEAVES[leaf]}, {steps} steps, {KINDS[kind]}\n")
    print("| rule | " + " | ".join(f"N={interval}" for interval in INTERVALS) + " |")
    print("|---|" + "---|" * len(INTERVALS))
    for rule, values in cells.items():
        print(f"| {rule} | {' | '.join(values)} |")


def print_stability(rows: Sequence[Mapping[str, Any]]) -> None:
    """A Markdown table of the stability of clusters."""
    print("\n| steps | tokens | C | runs of | silhouette | adjusted Rand index |\n|---|---|---|---|---|---|")
    for row in rows:
        runs = f"{row['runs']} × {row['prompts']} prompts"
        head = f"| {row['steps']} | {LEAVES[row['leaf']]} | {row['clusters']} | {runs} "
        print(f"{head}| {row['silhouette']:.2f} | {row['rand']:.2f} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe, held_out_prompts = image.load(), bundled.prompts("held-out")
    pipe.set_progress_bar_config(leave=False)
    site = sites(pipe.transformer, "model")[0]
    rows, chosen, stable = [], [], []
    for steps in STEPS:
        trace = calibrate(pipe, steps)
        parts = [held_out_prompts[g * GROUP : (g + 1) * GROUP] for g in range(GROUPS)]
        held_out = [record(pipe, part, steps, seed=HELD_OUT_SEED + g * GROUP) for g, part in enumerate(parts)]
        single = record(pipe, held_out_prompts[GROUPS * GROUP :][:SINGLE], steps, batch=1, seed=SINGLE_SEED)
        rows += list(errors(site, trace, held_out))
        chosen += [choices(site, trace, leaf) for leaf in LEAVES]
        stable += list(stability(site, trace, single))
        for leaf, kind in product(sorted(LEAVES, reverse=True), KINDS):
            print_errors(rows, steps, leaf, kind)
    print_stability(stable)
    settings = {
        "level": "model",
        "site": site.name,
        "leaves": LEAVES,
        "plan": f"Plan.every(interval, steps, {WARMUP}, last=True)",
        "calibration": {"prompts": CALIBRATION, "split": "train", "first_seed": SEED},
        "held_out": {"groups": GROUPS, "prompts": GROUPS * GROUP, "first_seed": HELD_OUT_SEED},
        "single": {"prompts": SINGLE, "split": "held-out", "first_seed": SINGLE_SEED},
        "tokens_by_leaf": {m.leaf: m.samples for m in held_out[0].networks["transformer"][site.name]},
        "threads": torch.get_num_threads(),
    }
    result = environment("python " + " ".join(sys.argv)) | {"settings": settings}
    result |= {"errors": rows, "solvers": chosen, "clusters": stable}
    arguments.output.write_text(json.dumps(result, indent=None, separators=(",", ":")).replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
