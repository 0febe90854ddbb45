"""`diffaccel calibrate`: record what calibrated methods learn from, tune them, and say how clear and stable it is."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.commands import (
    Answer,
    UsageError,
    check_json,
    check_writable,
    device_of,
    show_progress,
    silence_libraries,
)
from diffaccel.commands.env import environment
from diffaccel.commands.model import dtype_of, limit_threads, size_of
from diffaccel.commands.prompts import read_prompts
from diffaccel.commands.text import render, table
from diffaccel.pipelines import bundled
from diffaccel.pipelines.source import call_defaults, locate, read_json
from diffaccel.report import format_bytes

if TYPE_CHECKING:
    from diffaccel.trace import Trace

TUNED = (3, 4, 5, 6, 8)
CLUSTERS = 4  # HyCa's default, of which the solvers are told


def run(args: argparse.Namespace) -> Answer:
    """Carry out the command.

    Raises:
        UsageError: what was asked for cannot be done; raised before weights are loaded.
        OSError: the model cannot be loaded.
    """
    progress = show_progress(args)
    check_json(args)
    try:
        source = locate(args.model)
        is_bundled = args.model in bundled.NAMES
        prompts = read_prompts(args.prompts, args.model, args.num, split="train")
        silence_libraries(progress)
        from diffaccel.pipelines import image

        kind = image.pipeline_class(read_json(source))
        size = size_of(args)
        image.check_arguments(kind, list(size))
        steps = image.denoising_steps(kind, call_defaults(source), args.steps)
        output = _output(args, source, is_bundled, steps)
        import sklearn  # noqa: F401 (for its error, before anything long starts)
    except ModuleNotFoundError as error:
        raise UsageError("calibrating needs scikit-learn: pip install 'diffaccel[calibrate]'") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    return _calibrate(args, prompts, steps, size, output, progress)


def _calibrate(
    args: argparse.Namespace, prompts: list[str], steps: int, size: dict[str, int], output: Path, progress: bool
) -> Answer:
    from diffaccel.calibration import record
    from diffaccel.pipelines import image
    from diffaccel.tuning import tune

    device, is_bundled = device_of(args.device), args.model in bundled.NAMES
    limit_threads(args.model, device)
    batch = min(args.batch or (16 if is_bundled else 1), len(prompts))
    pipe = image.load(args.model, dtype_of(args, device), device)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"guidance": args.guidance, **size}
    start = time.perf_counter()
    trace = record(pipe, prompts, steps, args.level, batch, args.seed, progress, **arguments)
    recorded = time.perf_counter() - start
    if args.level == "model" and (intervals := TUNED if args.tune is None else args.tune):
        counts = sorted({computed(n, trace.steps) for n in intervals}, reverse=True)
        trace = tune(pipe, trace, prompts[:batch], counts, steps, args.seed, progress, **arguments)
    trace.save(output)
    seconds = time.perf_counter() - start
    data = {
        "model": args.model,
        "level": args.level,
        "steps": trace.steps,
        "pictures": len(prompts),
        "seconds": {"recording": recorded, "all": seconds},
        "output": str(output),
        "bytes": output.stat().st_size,
        "clusters": stability(trace),
        "solvers": solvers(trace),
        "tuned": trace.notes.get("tuned", {}),
        "environment": environment(),
    }
    return Answer(as_text(data), data)


def _output(args: argparse.Namespace, source: str, is_bundled: bool, steps: int) -> Path:
    from diffaccel.calibration import NAME

    if args.output is None and (is_bundled or not Path(source).is_dir()):
        raise UsageError(f"-o is needed, since {args.model} is no folder of yours: name the file to write")
    name = NAME.format(level=args.level, steps=steps)
    output = Path(source, name) if args.output is None else Path(args.output)
    if output.suffix != ".safetensors":
        raise UsageError(
            f"-o {output}: calibrations are safetensors files, name it {output.with_suffix('.safetensors')}"
        )
    check_writable(output, "-o")
    return output


def computed(interval: int, steps: int) -> int:
    """How many steps `fitted` computes at an interval, see `diffaccel.methods.fitted`."""
    from diffaccel.methods.fitted import Fitted

    return len(Fitted(interval=interval).plan([], steps).computed())


def stability(trace: Trace) -> list[dict[str, float]]:
    """For each number of clusters, silhouette and adjusted Rand index between runs, means over all features."""
    from diffaccel.clusters import COUNTS, describe

    every = [moments for sites in trace.networks.values() for leaves in sites.values() for moments in leaves]
    result = []
    for count in COUNTS:
        found = [describe(moments, count) for moments in every]
        means = {name: sum(one[name] for one in found) / len(found) for name in ("silhouette", "rand")}
        result.append({"clusters": count, **means})
    return result


def solvers(trace: Trace) -> dict[str, dict[str, float]]:
    """The share of dimensions that HyCa forecasts by each solver, by interval, over all features."""
    from diffaccel.calibration import Calibration
    from diffaccel.methods.hyca import HyCa

    calibration, result = Calibration({trace.steps: trace}), {}
    for interval in (n for n in TUNED if 2 * n + 2 <= trace.steps):
        counts: dict[str, int] = {}
        for network, sites in trace.networks.items():
            for site, leaves in sites.items():
                for moments in leaves:
                    labels = calibration.labels(network, site, moments.leaf, CLUSTERS, trace.steps)
                    chosen = HyCa(interval=interval, clusters=CLUSTERS).solvers(moments, labels)
                    for label in labels:
                        counts[chosen[label]] = counts.get(chosen[label], 0) + 1
        total = sum(counts.values())
        result[str(interval)] = {name: count / total for name, count in sorted(counts.items())}
    return result


def as_text(data: dict[str, Any]) -> str:
    """The answer for people."""
    groups = table("clusters", "silhouette", "adjusted Rand index between runs")
    for row in data["clusters"]:
        groups.add_row(str(row["clusters"]), f"{row['silhouette']:.2f}", f"{row['rand']:.2f}")
    choices = table("interval", "HyCa's solvers, share of dimensions")
    for interval, shares in data["solvers"].items():
        words = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        choices.add_row(interval, words)
    best = table("fitted: computed steps", "anchors", "feedback", "relative L2")
    for count, tuned in data["tuned"].items():
        error = min(tuned["relative_l2"])
        best.add_row(count, str(tuned["anchors"]), f"{tuned['feedback']:g}", f"{error:.4f}")
    seconds = data["seconds"]
    head = f"{data['model']}: {data['pictures']} pictures of {data['steps']} steps at level {data['level']}"
    tail = f"{seconds['recording']:.1f} s to record, {seconds['all']:.1f} s in all, {format_bytes(data['bytes'])}"
    return f"{head}\n\n{render(groups)}\n\n{render(choices)}\n\n{render(best)}\n\n{tail}\nwrote {data['output']}"
