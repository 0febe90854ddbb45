"""The field of candidates: which plain runs stand beside which methods, by computed steps and by measured time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffaccel.evaluation import timing
from diffaccel.evaluation.candidates import Candidate
from diffaccel.evaluation.store import Store
from diffaccel.evaluation.subject import Subject, Work
from diffaccel.evaluation.timing import Clock, Times
from diffaccel.metrics.speed import Timing

TIMES = "times.json"


@dataclass(frozen=True)
class Equal:
    """A plain run that stands beside a method, because it computes as much ("steps") or takes as long ("time")."""

    plain: str
    to: str
    by: str


@dataclass(frozen=True)
class Field:
    """All candidates of an evaluation, their work and times, and which plain runs belong to which methods."""

    candidates: list[Candidate]
    work: dict[str, Work]
    times: Times
    equal: list[Equal]


def find_field(
    subject: Subject, methods: Sequence[Candidate], extra: Sequence[int], rows: slice, rounds: int, progress: bool
) -> Field:
    """Time the full run, the methods and plain runs in turn, and keep the plain runs that equal a method in cost.

    Args:
        subject: what is evaluated.
        methods: the accelerations.
        extra: steps of further plain runs.
        rows: the pictures that are drawn in a timed call.
        rounds: timed runs of each.
        progress: show progress bars.
    """
    clock, full = clock_of(subject), Candidate.full(subject.steps)
    work = {candidate.name: subject.work(candidate) for candidate in (full, *methods)}
    computed = {subject.plain_steps(work[method.name]) for method in methods} | set(extra)
    plain = {n: Candidate.fewer(n) for n in sorted(computed) if n < subject.steps}
    if methods:
        pilot = timing.measure(subject, [full, *methods, *plain.values()], rows, timing.PILOT_ROUNDS, progress)
        known = {c.steps: clock.median(pilot[c.name]) for c in (full, *plain.values())}
        for method in methods if len(known) > 1 else ():
            guess = timing.guess_equal_steps(known, clock.median(pilot[method.name]), subject.steps - 1)
            plain |= {n: Candidate.fewer(n) for n in (guess, guess + 1) if 0 < n < subject.steps}
    times = timing.measure(subject, [full, *methods, *plain.values()], rows, rounds, progress)
    equal = pair_up(subject, clock, methods, plain, work, times)
    kept = {pair.plain for pair in equal} | {plain[n].name for n in extra if n in plain}
    fewer = [plain[n] for n in sorted(plain, reverse=True) if plain[n].name in kept]
    work |= {candidate.name: subject.work(candidate) for candidate in fewer}
    return Field([full, *methods, *fewer], work, times, equal)


def pair_up(
    subject: Subject,
    clock: Clock,
    methods: Sequence[Candidate],
    plain: dict[int, Candidate],
    work: dict[str, Work],
    times: Times,
) -> list[Equal]:
    """The plain run of equal computed steps and that of equal time for each method, where there is one."""
    result, steps = [], {candidate.name: n for n, candidate in plain.items()}
    for method in methods:
        n = subject.plain_steps(work[method.name])
        if n in plain:
            result.append(Equal(plain[n].name, method.name, "steps"))
        full = Candidate.full(subject.steps).name
        if (name := timing.plain_at_equal_time(clock, times, steps, full, method.name, n)) is not None:
            result.append(Equal(name, method.name, "time"))
    return result


def clock_of(subject: Subject) -> Clock:
    """The time that counts on the subject's device."""
    return Clock(cpu=subject.pipe.device.type == "cpu")


def recalled_field(store: Store, settings: dict[str, Any], methods: Sequence[Candidate], steps: int) -> Field | None:
    """The field of an earlier run with these settings; None if there was none."""
    held = store.read_json(TIMES)
    if held.get("settings") != settings:
        return None
    fewer = [Candidate.fewer(n) for n in held["fewer"]]
    return Field(
        [Candidate.full(steps), *methods, *fewer],
        {name: Work(**work) for name, work in held["work"].items()},
        {name: Timing(**times) for name, times in held["times"].items()},
        [Equal(**pair) for pair in held["equal"]],
    )


def remember_field(store: Store, settings: dict[str, Any], field: Field) -> None:
    """Keep the field, so that a run that is killed later need not time again."""
    store.write_json(
        TIMES,
        {
            "settings": settings,
            "fewer": [candidate.steps for candidate in field.candidates if candidate.kind == "fewer"],
            "work": {name: asdict(work) for name, work in field.work.items()},
            "times": {name: asdict(times) for name, times in field.times.items()},
            "equal": [asdict(pair) for pair in field.equal],
        },
    )
