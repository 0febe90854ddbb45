"""An evaluation from start to end: time, generate, measure, compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

from diffaccel.evaluation import timing
from diffaccel.evaluation.candidates import Candidate
from diffaccel.evaluation.field import Field, clock_of, find_field, recalled_field, remember_field
from diffaccel.evaluation.measure import Chunk, Measured, distributions, gain, measure, picture_estimate
from diffaccel.evaluation.store import Store
from diffaccel.evaluation.subject import Subject, free_memory
from diffaccel.evaluation.timing import Clock
from diffaccel.evaluation.tools import Tools


def evaluate(
    subject: Subject,
    methods: Sequence[Candidate],
    tools: Tools,
    store: Store,
    extra: Sequence[int] = (),
    rounds: int = 5,
    progress: bool = True,
) -> tuple[Field, dict[str, Any]]:
    """Time, draw and measure methods beside the full run and plain runs of equal cost; go on where it was stopped.

    Args:
        subject: the pipeline with its prompts.
        methods: accelerations, see `candidates.accelerations`.
        tools: the metrics.
        store: the folder that keeps pictures and times.
        extra: steps of further plain runs.
        rounds: timed runs of each.
        progress: show progress bars with the remaining time.

    Returns:
        All candidates, and the result as data: "metrics", "candidates", "gains" and "warnings".
    """
    settings = {"rounds": rounds, "extra": list(extra), "methods": [method.folder for method in methods]}
    field = recalled_field(store, settings, methods, subject.steps)
    if field is None:
        field = find_field(subject, methods, extra, store.chunks()[0], rounds, progress)
        remember_field(store, settings, field)
    generate(subject, store, field, progress)
    measured = measure_all(subject, store, field, tools, progress)
    return field, result(subject, field, tools, measured, progress)


def generate(subject: Subject, store: Store, field: Field, progress: bool) -> None:
    """Draw what the store lacks of each candidate; the bar counts computed steps, so its remaining time is right."""
    missing = [(c, rows) for c in field.candidates for rows in store.missing(c)]
    cost = {c.name: field.work[c.name].computed for c in field.candidates}
    total = sum(cost[c.name] * store.rows for c in field.candidates)
    left = sum(cost[c.name] * (rows.stop - rows.start) for c, rows in missing)
    with tqdm(
        total=round(total), initial=round(total - left), desc="generating", unit="step", disable=not progress
    ) as bar:
        done = total - left
        for candidate, rows in missing:
            bar.set_postfix_str(candidate.name, refresh=False)
            store.save(candidate, rows, subject.draw(candidate, rows))
            done += cost[candidate.name] * (rows.stop - rows.start)
            bar.update(round(done) - bar.n)
            free_memory(subject.pipe.device)


def measure_all(subject: Subject, store: Store, field: Field, tools: Tools, progress: bool) -> dict[str, Measured]:
    """What was measured of each candidate, by name."""
    full = field.candidates[0]

    def chunks(candidate: Candidate) -> Iterator[Chunk]:
        for (rows, drawn), (_, reference) in zip(store.each(candidate), store.each(full), strict=True):
            yield drawn, reference, subject.prompts[rows]

    total = store.rows * len(field.candidates)
    with tqdm(total=total, desc="measuring", unit="picture", disable=not progress) as bar:
        return {candidate.name: measure(tools, chunks(candidate), bar) for candidate in field.candidates}


def result(
    subject: Subject, field: Field, tools: Tools, measured: dict[str, Measured], progress: bool
) -> dict[str, Any]:
    """The columns, candidates and gains of the evaluation as data."""
    full, clock = field.candidates[0].name, clock_of(subject)
    entries = []
    for candidate in tqdm(field.candidates, desc="intervals", unit="candidate", disable=not progress):
        own, work = measured[candidate.name], field.work[candidate.name]
        numbers = {name: picture_estimate(name, values) for name, values in own.values.items()}
        numbers |= distributions(tools, own, measured[full])
        entries.append(
            {
                "name": candidate.name,
                "kind": candidate.kind,
                "method": candidate.written_out,
                "steps": candidate.steps,
                "computed": work.computed,
                "bound": work.bound,
                "equal": [{"to": pair.to, "by": pair.by} for pair in field.equal if pair.plain == candidate.name],
                "time": timing.as_data(clock, field.times[candidate.name], field.times[full]),
                "cache_bytes": work.cache_bytes,
                "metrics": numbers,
            }
        )
    return {
        "metrics": [metric.as_dict() for metric in tools.metrics()],
        "candidates": entries,
        "gains": [
            {"of": pair.to, "over": pair.plain, "by": pair.by, "metric": name}
            | gain(name, values, measured[pair.plain].values[name])
            for pair in field.equal
            for name, values in measured[pair.to].values.items()
            if name != "exact"
        ],
        "warnings": [*tools.warnings(len(subject.prompts)), *_contention(field, clock)],
    }


def _contention(field: Field, clock: Clock) -> list[str]:
    """A warning if other work on the machine took much of the time."""
    wall = sum(sum(times.seconds) for times in field.times.values())
    own = sum(sum(times.cpu_seconds) for times in field.times.values())
    if not clock.cpu or wall < 1.3 * own:
        return []
    return [f"the timed runs took {wall / own:.1f} times their processor time, so the machine had other work to do"]
