"""Quality against latency of plain solvers, caches and Morse on a bundled pipeline, from equal noise.

    python benchmarks/morse.py --pipeline ddpm-digits --dots runs/dots/small --output benchmarks/morse_ddpm.json
    python benchmarks/morse.py --pipeline sd-digits --samples 64 --seeds 0 1 --cells 'ddim *' --output runs/few.json

Of each cell and seed: the squared Frechet distance of `fd_digits` features to 20 000 renders of held-out handwriting
(`fd_renders`) and to the reference pictures of all other seeds (`fd_reference`), root mean square error (pictures in
-1..1), PSNR and relative L2 of latents to the reference of the same noise, and what the checker reads. The reference is
a second-order solver with `--reference-steps` steps. All cells have equally many pictures and
no cell is compared with reference pictures of its own noise by distribution, so both distances have the same bias for
all; the rows of the reference and of real renders show how large they are at best.

Times are those of denoising alone, at one batch on one thread, in turn with a plain run of ten steps, in other runs
than quality. LSD of a run with a Dot is counted from the N that is measured here.

Every result is kept under runs/ when it is there: start the same command again to go on, or to add cells or Dots.
`morse_table.py` shows the result, `morse_plot.py` draws it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from bench import Journal
from morse_cells import FIRST, PIPELINES, PLANS, SOLVERS, ZERO, Cell, cells, reference
from morse_results import assemble
from morse_subject import Drawn, Subject
from results import environment
from tqdm.auto import tqdm

from diffaccel.metrics.statistics import Statistics
from diffaccel.pipelines import bundled
from diffaccel.pipelines.source import fingerprint

SAMPLES = {"ddpm-digits": 1000, "sd-digits": 750, "flux-digits": 500}
"""Pictures of a cell and seed, so that a pipeline takes about 40 minutes on a core."""
GROUP = 5
"""Cells that are timed in turn with one plain run of `BASE_STEPS` steps."""
BASE_STEPS = 10


class References:
    """The reference of each seed, made once and kept in a folder."""

    def __init__(self, subject: Subject, cell: Cell, seeds: Sequence[int], folder: Path) -> None:
        self.subject, self.cell, self.seeds, self.folder = subject, cell, list(seeds), folder
        self._features = {seed: subject.features(self[seed].pictures) for seed in tqdm(seeds, desc="references")}

    def __getitem__(self, seed: int) -> Drawn:
        """Pictures and latents of a seed."""
        file = self.folder / f"reference-{seed}.pt"
        if not file.is_file():
            made, _ = self.subject.draw(self.cell, seed)
            part = file.with_suffix(".part")
            torch.save({"pictures": made.pictures, "latents": made.latents}, part)
            part.replace(file)
        kept = torch.load(file, weights_only=True)
        return Drawn(kept["pictures"], kept["latents"])

    def others(self, seed: int) -> Statistics | None:
        """Statistics of the reference pictures of all other seeds; None where there is no other."""
        features = [self._features[other] for other in self.seeds if other != seed]
        return self.subject.of(torch.cat(features)) if features else None


def measure(subject: Subject, wanted: Sequence[Cell], references: References, journal: Journal) -> None:
    """Quality of all cells and seeds that the journal lacks, seed by seed; why a cell cannot be had is kept, too."""
    if lacking(journal, "real"):
        journal.add("real", subject.real())
    for seed in references.seeds:
        reference, others = references[seed], references.others(seed)
        if lacking(journal, key := f"quality, {seed}, reference"):
            journal.add(key, subject.quality(reference, None, others))
        due = [cell for cell in wanted if lacking(journal, f"quality, {seed}, {named(subject, cell)}")]
        bar = tqdm(due, desc=f"{subject.name}, seed {seed}", unit="cell")
        for cell in bar:
            bar.set_postfix_str(cell.name)
            key = f"quality, {seed}, {named(subject, cell)}"
            try:
                drawn, work = subject.draw(cell, seed)
            except (TypeError, ValueError, RuntimeError) as error:
                journal.add(key, {"refused": f"{type(error).__name__}: {error}"})
                tqdm.write(f"{cell.name}: {error}", file=sys.stderr)
                continue
            journal.add(key, {**subject.quality(drawn, reference, others), **work})


def time(subject: Subject, wanted: Sequence[Cell], journal: Journal, seed: int, batch: int, rounds: int) -> None:
    """Times that the journal lacks, and N of each Dot; cells that were refused have none, nor have Dots of zero."""
    for label in subject.labels:
        if lacking(journal, key := f"ratio, {subject.labels[label]}, {batch}"):
            journal.add(key, subject.ratio(label, batch, rounds))
    base = Cell(FIRST[subject.name], BASE_STEPS)

    def timeable(cell: Cell) -> bool:
        found = journal.entries.get(f"quality, {seed}, {named(subject, cell)}", {})
        return cell.kind != "zero" and "refused" not in found

    due = [c for c in wanted if timeable(c) and lacking(journal, f"time, {named(subject, c)}, {batch}")]
    for start in tqdm(range(0, len(due), GROUP), desc=f"{subject.name}, times", unit="group"):
        group = [cell for cell in due[start : start + GROUP] if cell != base]
        found = subject.times([base, *group], batch, rounds)
        for cell in due[start : start + GROUP]:
            own, full = found[cell.name], found[base.name]
            timing = {
                "ratio": own.ratio(full, cpu=True),
                "wall_ratio": own.ratio(full),
                "cpu_seconds": own.cpu_seconds,
                "seconds": own.seconds,
                "base_cpu_seconds": full.cpu_seconds,
                "base_seconds": full.seconds,
            }
            journal.add(f"time, {named(subject, cell)}, {batch}", timing)


def named(subject: Subject, cell: Cell) -> str:
    """The cell's name in the journal, which tells Dots of one label apart by their weights."""
    return f"{cell.name} {subject.labels[cell.dot]}" if cell.dot in subject.labels else cell.name


def lacking(journal: Journal, key: str) -> bool:
    """Whether something has to be measured."""
    return key not in journal.entries


def plan(text: str) -> tuple[int, int]:
    """Dash and Dot steps from a text such as `3,6`."""
    k_dash, k_dot = (int(part) for part in text.split(","))
    if k_dash < 1 or k_dot < 1:
        raise ValueError(text)
    return k_dash, k_dot


def parse() -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", choices=PIPELINES, required=True)
    parser.add_argument(
        "--dots", nargs="+", type=Path, default=[], help="folders of trained Dots; their names are labels"
    )
    parser.add_argument("--plans", nargs="+", type=plan, default=list(PLANS), help="Dash and Dot steps, such as 3,6")
    parser.add_argument("--solvers", nargs="+", choices=list(SOLVERS), help="that Dots are run under")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, help=f"of each cell and seed (default: {SAMPLES})")
    parser.add_argument("--batch", type=int, default=250, help="pictures a call where quality is measured")
    parser.add_argument("--reference-steps", type=int, default=100)
    parser.add_argument("--timed-batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each cell")
    parser.add_argument("--cells", nargs="+", help="names of cells, or patterns such as 'ddim *'; all unless given")
    parser.add_argument("--no-times", action="store_true", help="quality only")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    arguments.samples = arguments.samples or SAMPLES[arguments.pipeline]
    counts = ("samples", "batch", "reference_steps", "timed_batch", "rounds")
    if min(getattr(arguments, name) for name in counts) < 1 or arguments.samples < 2:
        parser.error("all counts must be at least 1, and --samples at least 2")
    if len({folder.name for folder in arguments.dots}) < len(arguments.dots):
        parser.error("two folders of --dots have one name, and labels are made of these")
    if any(folder.name in ZERO for folder in arguments.dots):
        parser.error(f"a folder of --dots is called like a Dot that says nothing: {', '.join(ZERO)}")
    if missing := [str(folder) for folder in arguments.dots if not (folder / "config.json").is_file()]:
        parser.error(f"there is no Dot in {', '.join(missing)}")
    if not arguments.output.parent.is_dir():
        parser.error(f"the folder {arguments.output.parent} does not exist")
    return arguments


def chosen(every: Sequence[Cell], patterns: Sequence[str] | None) -> list[Cell]:
    """The cells whose names match one of the patterns; all of them without a pattern.

    Raises:
        SystemExit: nothing matches a pattern.
    """
    for pattern in patterns or ():
        if not any(fnmatch(cell.name, pattern) for cell in every):
            raise SystemExit(f"no cell is called {pattern!r}; there are:\n" + "\n".join(cell.name for cell in every))
    return [cell for cell in every if patterns is None or any(fnmatch(cell.name, p) for p in patterns)]


def main() -> None:
    """The command line."""
    arguments = parse()
    folders = {folder.name: folder for folder in arguments.dots}
    trained = {name: json.loads((folder / "config.json").read_text())["scheduler"] for name, folder in folders.items()}
    every = cells(arguments.pipeline, trained, arguments.plans, arguments.solvers)
    wanted = chosen(every, arguments.cells)
    subject = Subject(arguments.pipeline, arguments.samples, arguments.batch, folders)
    counts = ("pipeline", "samples", "batch", "reference_steps")
    common = {name: getattr(arguments, name) for name in counts} | {
        "weights": fingerprint(str(bundled.path(arguments.pipeline))),
        "checker": subject.extractor.identity.weights[:12],
    }
    key = hashlib.sha256(json.dumps([common, arguments.seeds]).encode()).hexdigest()[:8]
    place = Path("runs", "morse", f"{arguments.pipeline}-{arguments.samples}-{key}")
    place.mkdir(parents=True, exist_ok=True)
    journal = Journal(place / "journal.jsonl")
    cell = reference(arguments.pipeline, arguments.reference_steps)
    measure(subject, wanted, References(subject, cell, arguments.seeds, place), journal)
    if not arguments.no_times:
        time(subject, wanted, journal, arguments.seeds[0], arguments.timed_batch, arguments.rounds)
    settings = {**common, "seeds": arguments.seeds, "timed_batch": arguments.timed_batch, "rounds": arguments.rounds}
    settings |= {"threads": 1, "reference": cell.name, "first": FIRST[arguments.pipeline]}
    names = {one.name: named(subject, one) for one in every}
    found = assemble(journal.entries, every, names, subject.labels, settings)
    result: dict[str, Any] = {**environment("python " + shlex.join(sys.argv)), "settings": settings, **found}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if found["refused"]:
        print("not measured:", *(f"{name}: {why}" for name, why in found["refused"].items()), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
