"""Does the search of auto run what is worth a run, and choose what it should? Worked cases and random worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffaccel.auto.prompts import LEARNT, prompts_of, split
from diffaccel.auto.quality import HIGHEST, Quality, students_t
from diffaccel.auto.search import Row, Target, choose, cost, estimate, nearest, next_trial
from diffaccel.pipelines import bundled
from tests import tiny

STEPS = 20
MARGIN = 2.0  # from the mean to the lower end of its interval, in these worlds


def quality(mean: float) -> Quality:
    return Quality(mean, mean - MARGIN, mean + MARGIN, mean - 3 * MARGIN, 8)


def row(
    computed: int, forecast: float, mean: float | None = None, timed: float | None = None, family: str = "a"
) -> Row:
    run = None if mean is None else quality(mean)
    return Row(f"{family}:{computed}", family, "model", computed, STEPS, forecast, run, timed)


@pytest.mark.parametrize(("degrees", "known"), [(3, 3.182), (4, 2.776), (7, 2.365), (15, 2.131), (100, 1.984)])
def test_students_t_is_that_of_the_tables(degrees: int, known: float) -> None:
    assert students_t(degrees) == pytest.approx(known, rel=0.01)


def test_an_interval_by_hand() -> None:
    # Standard deviation of 40, 42, 44, 46: sqrt(20 / 3); over sqrt(4) and times 3.182 that is 4.108.
    found = Quality.of([40, 42, 44, 46])
    assert (found.mean, found.worst, found.n) == (43, 40, 4)
    assert found.low == pytest.approx(43 - 4.108, abs=0.04)
    assert found.high == pytest.approx(43 + 4.108, abs=0.04)


def test_identical_pictures_count_as_the_highest() -> None:
    assert Quality.of([float("inf")] * 3) == Quality(HIGHEST, HIGHEST, HIGHEST, HIGHEST, 3)
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        Quality.of([40.0])


def test_one_run_tells_of_its_whole_family() -> None:
    rows = [row(4, 20), row(8, 30, mean=41), row(12, 35)]
    assert [estimate(rows, one, Target(speedup=2)) for one in rows] == [31, 41, 46]
    assert [estimate(rows, one, Target(psnr=30)) for one in rows] == [29, 39, 44], "the pessimistic end"


def test_between_runs_what_forecasts_are_off_by_is_a_straight_line() -> None:
    rows = [row(4, 20, mean=22), row(6, 26), row(8, 30, mean=36), row(19, 50)]
    assert estimate(rows, rows[1], Target(speedup=2)) == 26 + 4
    assert estimate(rows, rows[3], Target(speedup=2)) == 50 + 6


def test_a_family_that_was_never_run_is_taken_for_as_good_as_the_best() -> None:
    rows = [row(8, 30, mean=36), row(8, 31, mean=40, family="b"), row(9, 33, family="c")]
    assert estimate(rows, rows[2], Target(speedup=2)) == 33 + 9
    assert estimate([rows[2]], rows[2], Target(speedup=2)) == float("inf")


def test_skipped_steps_save_what_they_were_timed_to_save() -> None:
    rows = [row(10, 30, timed=0.6), row(5, 20), row(5, 20, family="b")]
    assert cost(rows, rows[1]) == pytest.approx(1 - 15 * 0.04)
    assert cost(rows, rows[2]) == cost(rows, rows[1]), "nothing else is known of the other kind"
    rows.append(row(10, 30, timed=0.8, family="b"))
    assert cost(rows, rows[2]) == pytest.approx(1 - 15 * 0.02)


TABLE = [row(4, 20, 30), row(8, 30, 40), row(12, 40, 50), row(8, 30, 44, family="b")]


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        (Target(psnr=27.5), "a:4"),
        (Target(psnr=28.5), "b:8"),
        (Target(psnr=41), "b:8"),
        (Target(psnr=43), "a:12"),
        (Target(psnr=49), None),
        (Target(speedup=1.6), "a:12"),
        (Target(speedup=2), "b:8"),
        (Target(speedup=3), "a:4"),
        (Target(speedup=6), None),
    ],
)
def test_what_is_chosen_from_a_table(target: Target, chosen: str | None) -> None:
    found = choose(TABLE, target)
    assert (found and found.name) == chosen


def test_what_is_no_faster_than_the_full_run_is_not_chosen() -> None:
    assert choose([row(8, 30, 40, timed=1.02)], Target(psnr=20)) is None
    assert choose([row(8, 30, 40, timed=0.98)], Target(psnr=20)) is not None


def test_a_time_that_was_measured_counts_more_than_one_that_is_expected() -> None:
    rows = [row(12, 40, 50, timed=0.5), row(8, 30, 40)]
    found = choose(rows, Target(speedup=2))
    assert found is not None
    assert found.name == "a:12"
    rows[0] = replace(rows[0], timed=0.51)
    found = choose(rows, Target(speedup=2))
    assert found is not None
    assert found.name == "a:8"


def test_what_comes_nearest() -> None:
    assert nearest(TABLE, Target(psnr=90)).name == "a:12"
    assert nearest(TABLE, Target(speedup=19)).name == "a:4"


def test_nothing_is_run_that_cannot_matter() -> None:
    rows = [row(4, 20), row(8, 30, 40), row(12, 40)]
    assert next_trial(rows, Target(psnr=35)) is None, "4 steps are expected at 28 dB"
    found = next_trial(rows, Target(psnr=28.5))
    assert found is not None
    assert found.name == "a:4"
    found = next_trial(rows, Target(speedup=1.6))
    assert found is not None
    assert found.name == "a:12"
    assert next_trial(rows, Target(speedup=2)) is None, "12 steps are too slow, 4 less faithful"


def test_what_takes_as_long_and_may_be_nearer_is_run_too() -> None:
    rows = [row(8, 30, 40), row(8, 32, family="b"), row(8, 28, family="c"), row(9, 40)]
    found = next_trial(rows, Target(psnr=35))
    assert found is not None
    assert found.name == "b:8", "expected at 42 dB; c is not, and 9 steps take longer"
    rows[1] = replace(rows[1], quality=quality(43))
    assert next_trial(rows, Target(psnr=35)) is None
    found = choose(rows, Target(psnr=35))
    assert found is not None
    assert found.name == "b:8"


worlds = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(2, STEPS - 1), st.floats(10, 60), st.floats(-8, 8)),
    min_size=3,
    max_size=40,
    unique_by=lambda one: one[:2],
)


def settled(rows: list[Row], truth: Mapping[str, float], target: Target) -> tuple[list[Row], Row | None]:
    """The table after everything promising was run, and what is chosen."""
    while (trial := next_trial(rows, target)) is not None:
        assert trial.quality is None
        rows = [replace(one, quality=quality(truth[one.name])) if one is trial else one for one in rows]
    return rows, choose(rows, target)


@settings(max_examples=100, deadline=None)
@given(worlds, st.floats(12, 70), st.floats(1.1, 8))
def test_in_any_world_what_is_chosen_reaches_the_target(
    world: list[tuple[str, int, float, float]], psnr: float, speedup: float
) -> None:
    rows = [row(computed, forecast, family=family) for family, computed, forecast, _ in world]
    truth = {f"{family}:{computed}": forecast + 5 + off for family, computed, forecast, off in world}
    _, chosen = settled(rows, truth, Target(psnr=psnr))
    assert chosen is None or truth[chosen.name] - MARGIN >= psnr
    after, chosen = settled(rows, truth, Target(speedup=speedup))
    allowed = [one for one in after if STEPS / one.computed >= speedup]
    assert (chosen is None) == (not allowed)
    if chosen is not None:
        assert chosen in allowed
        assert truth[chosen.name] == max(truth[one.name] for one in allowed if one.quality is not None)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(2, STEPS - 1), min_size=2, max_size=18, unique=True),
    st.floats(-10, 20),
    st.floats(0, 80),
    st.floats(1.1, 8),
)
def test_where_forecasts_are_right_up_to_a_constant_the_best_of_all_is_found(
    counts: list[int], off: float, psnr: float, speedup: float
) -> None:
    rows = [row(count, 3.0 * count) for count in counts]
    truth = {one.name: one.forecast + off for one in rows}
    everything = [replace(one, quality=quality(truth[one.name])) for one in rows]
    for target in (Target(psnr=psnr), Target(speedup=speedup)):
        after, chosen = settled(rows, truth, target)
        best = choose(everything, target)
        assert (chosen and chosen.name) == (best and best.name)
        assert sum(one.quality is not None for one in after) <= 4


@settings(max_examples=100, deadline=None)
@given(worlds, st.lists(st.floats(0, 70), min_size=2, max_size=2))
def test_a_lower_fidelity_never_takes_longer(world: list[tuple[str, int, float, float]], targets: list[float]) -> None:
    rows = [row(computed, forecast, forecast + off, family=family) for family, computed, forecast, off in world]
    low, high = (choose(rows, Target(psnr=value)) for value in sorted(targets))
    if high is not None:
        assert low is not None
        assert low.computed <= high.computed


@pytest.mark.parametrize("count", [2, 3, 5, 8, 12, 40])
def test_no_prompt_is_both_learnt_from_and_judged_by(count: int) -> None:
    prompts = [f"prompt {i}" for i in range(count)]
    learnt, judged = split(prompts, 8)
    assert (len(learnt), len(judged)) == (LEARNT, 8)
    assert not set(learnt) & set(judged)
    assert set(learnt) | set(judged) <= set(prompts)
    assert len(set(judged)) == min(8, count - len(set(learnt)))


def test_one_prompt_has_to_do_for_both() -> None:
    assert split(["only"], 5) == (["only"] * LEARNT, ["only"] * 5)
    assert split(["twice", "twice"], 4) == (["twice"] * LEARNT, ["twice"] * 4)


def test_prompts_that_are_known() -> None:
    every = [prompts_of(SimpleNamespace(name_or_path=str(bundled.path(name))), None) for name in bundled.NAMES]
    assert all(len(prompts) == len(set(prompts)) == 12 for prompts in every)
    pipe = tiny.dit()
    assert prompts_of(pipe, None) == [str(i * 1000 // 12) for i in range(12)]
    pipe.labels = {"cat": 3, "kitten": 3, "dog": 7}
    assert prompts_of(pipe, None) == ["3", "7"]
    assert prompts_of(pipe, ["dog", 3]) == ["dog", "3"]
