"""Step-wise decoding against plain loops written from the official code's description, on toys without a network."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffaccel.dlm.conventions import Conventions
from diffaccel.dlm.policies import Decode, Dual, Greedy, Policy, Prefill, Prefix, PromptDecode
from diffaccel.dlm.rule import Rule
from diffaccel.dlm.scores import Prediction, Sampler
from diffaccel.dlm.sequence import Course, stepwise
from diffaccel.dlm.state import Ask, State
from diffaccel.dlm.steady import Finished, Interval
from tests.dlm.toys import MASK, Deep, Run, left_to_right, play

CASES = json.loads((Path(__file__).parents[1] / "oracles" / "diffusion_lm.json").read_text())["cases"]
PROMPT = np.array([3, 1, 4, 1, 5])
SEEDS = range(12)


def course(
    generated: int = 12,
    steps: int | None = None,
    block: int | None = None,
    remasking: Any = "low_confidence",
    prompt: NDArray[np.int64] = PROMPT,
    shift: bool = False,
    grid: int | None = None,
    end: int | None = None,
    rule: Rule | None = None,
    policy: Policy | None = None,
    reuse: Any = "un_right",
    **options: Any,
) -> Course:
    """A course over a toy's vocabulary."""
    sampler, conventions = Sampler(remasking), Conventions(MASK, end, shift, grid)
    rule = rule or Rule("dream" if sampler.of_dream else "llada")
    return Course(prompt, generated, steps or generated, block, conventions, sampler, rule, policy, reuse, **options)


def _full(toy: Deep, tokens: NDArray[np.int64]) -> Prediction:
    """What the toy predicts for all masked positions from all rows, without anything stored."""
    masked = np.flatnonzero(tokens == MASK)
    fresh = Deep(toy.length, toy.seed, toy.shift, toy.grid, toy.period)
    return fresh(Ask(tokens, np.ones(len(tokens), dtype=bool), masked, len(tokens), 0))


def _text(generated: int) -> NDArray[np.int64]:
    return np.concatenate([PROMPT, np.full(generated, MASK)])


def _written(x: NDArray[np.int64], found: Prediction, positions: list[int]) -> list[int]:
    tokens = dict(zip(found.positions.tolist(), found.tokens.tolist(), strict=True))
    for p in positions:
        x[p] = tokens[p]
    return sorted(positions)


def _surest(found: Prediction, allowed: range, count: int) -> list[int]:
    ranked = [(-c, p) for p, c in zip(found.positions.tolist(), found.confidence, strict=True) if p in allowed]
    return [p for _, p in sorted(ranked)[:count]]


def llada_loop(toy: Deep, generated: int, steps: int, block: int) -> tuple[NDArray[np.int64], list[list[int]]]:
    """LLaDA's generate loop: the text, and the positions of each step."""
    x, trace = _text(generated), []
    count = steps // (generated // block)
    for start in range(len(PROMPT), len(x), block):
        area = range(start, start + block)
        share, rest = divmod(block, count)
        for step in range(count):
            found = _full(toy, x)
            trace.append(_written(x, found, _surest(found, area, share + (step < rest))))
    return x, trace


def dream_loop(toy: Deep, generated: int, steps: int) -> tuple[NDArray[np.int64], list[list[int]]]:
    """Dream's loop; a step may decode nothing."""
    x, trace = _text(generated), []
    times = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        masked = int((x == MASK).sum())
        count = int(masked * (1 - times[step + 1] / times[step])) if step < steps - 1 else masked
        found = _full(toy, x)
        trace.append(_written(x, found, _surest(found, range(len(x)), count)))
    return x, trace


@pytest.mark.parametrize(
    ("generated", "steps", "block"), [(12, 12, 12), (12, 5, 12), (12, 6, 4), (12, 9, 4), (8, 1, 8)]
)
def test_lladas_loop(generated: int, steps: int, block: int) -> None:
    for seed in SEEDS:
        toy = Deep(len(PROMPT) + generated, seed)
        text, trace = llada_loop(toy, generated, steps, block)
        run = play(stepwise(course(generated, steps, block)), toy)
        assert run.decoded == trace
        assert run.text.tolist() == text.tolist()
        assert run.rows == steps * toy.length


@pytest.mark.parametrize("remasking", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize(("generated", "steps"), [(8, 8), (12, 12), (12, 5), (12, 1)])
def test_dreams_loop_with_its_shift(remasking: str, generated: int, steps: int) -> None:
    for seed in SEEDS:
        toy = Deep(len(PROMPT) + generated, seed, shift=True)
        text, trace = dream_loop(toy, generated, steps)
        run = play(stepwise(course(generated, steps, remasking=remasking, shift=True)), toy)
        # Steps that decode nothing need no forward.
        assert run.decoded == [positions for positions in trace if positions]
        assert run.text.tolist() == text.tolist()
    assert steps < generated or [] in trace


def test_origin_of_dream_decodes_each_position_by_chance() -> None:
    """Each masked position with probability 1 - s / t; all that are left at the last step."""
    for seed in SEEDS:
        x, trace, times = _text(12), [], np.linspace(1, 1e-3, 7)
        toy = Deep(len(x), seed)  # its confidences stand for the draws
        for step in range(6):
            found = _full(toy, x)
            share = 1 - times[step + 1] / times[step] if step < 5 else 1.0
            chosen = [p for p, u in zip(found.positions.tolist(), found.confidence, strict=True) if u < share]
            trace.append(_written(x, found, chosen))
            if not (x == MASK).any():
                break
        run = play(stepwise(course(12, 6, remasking="origin")), toy)
        assert run.decoded == trace
        assert run.text.tolist() == x.tolist()


@pytest.mark.parametrize("kind", ["threshold", "factor", "entropy_bound"])
def test_parallel_rules(kind: str) -> None:
    value = {"threshold": 0.6, "factor": 0.9, "entropy_bound": 0.8}[kind]
    lengths = set()
    for seed in SEEDS:
        toy, x, trace = Deep(17, seed), _text(12), []
        for start in (5, 11):
            while (x[start : start + 6] == MASK).any():
                found = _full(toy, x)
                rows = list(zip(found.positions.tolist(), found.confidence, found.entropy, strict=True))
                rows = [row for row in rows if row[0] in range(start, start + 6)]
                if kind == "threshold":
                    chosen = [p for p, c, _ in rows if c >= value] or _surest(found, range(start, start + 6), 1)
                elif kind == "factor":
                    chosen = []
                    for rank, (p, c, _) in enumerate(sorted(rows, key=lambda row: (-row[1], row[0])), 1):
                        if rank > 1 and c < 1 - value / (rank + 1):
                            break
                        chosen.append(p)
                else:
                    chosen, total = [], 0.0
                    for p, _, entropy in sorted(rows, key=lambda row: (row[2], row[0])):
                        if total <= value:
                            chosen.append(p)
                        total += entropy
                trace.append(_written(x, found, chosen))
        run = play(stepwise(course(12, block=6, rule=Rule(**{kind: value}))), toy)
        assert run.decoded == trace
        assert run.text.tolist() == x.tolist()
        lengths |= {len(positions) for positions in trace}
    assert len(lengths) > 2  # the rule decodes one position here, several there


def test_a_threshold_with_a_quota() -> None:
    sure = Rule(threshold=0.99, quota=True)
    run = play(stepwise(course(12, 3, rule=sure)), Deep(17))
    assert [len(positions) for positions in run.decoded] == [4, 4, 4]
    run = play(stepwise(course(12, 3, rule=dataclasses.replace(sure, quota=False))), Deep(17))
    assert [len(positions) for positions in run.decoded] == [1] * 12


def test_a_random_order_is_drawn_in_advance() -> None:
    orders = []
    for seed in (0, 0, 1):
        made = course(12, 6, 6, remasking="random", generator=np.random.default_rng(seed))
        run = play(stepwise(made), Deep(17))
        assert made.order is not None
        for part, block in ((run.decoded[:3], range(5, 11)), (run.decoded[3:], range(11, 17))):
            ranked = sorted(block, key=lambda p: made.order[p])
            assert part == [sorted(ranked[i : i + 2]) for i in (0, 2, 4)]
        orders.append(run.decoded)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_an_end_of_text_ends_the_run_at_its_block() -> None:
    stops = set()
    for seed in range(30):
        toy = Deep(17, seed)
        text, _ = llada_loop(toy, 12, 12, 4)
        made = course(12, block=4, end=2)
        run = play(stepwise(made), toy)
        ends = np.flatnonzero(text[5:] == 2)
        done = 12 if not len(ends) else (int(ends[0]) // 4 + 1) * 4
        assert run.text.tolist() == text[: 5 + done].tolist() + [2] * (12 - done)
        assert len(run.calls) == done
        assert made.written(run.text) == done
        assert play(stepwise(course(12, block=4, end=2, stop_at_end=False)), toy).text.tolist() == text.tolist()
        stops.add(done)
    assert stops == {4, 8, 12}


def test_an_end_of_text_inside_the_prompt_ends_nothing() -> None:
    assert 5 in PROMPT[4:]  # in the block that straddles its end
    for grid in (4, None):
        block = None if grid else 4
        runs = [play(stepwise(course(12, block=block, grid=grid, end=5)), Deep(17, seed, grid=grid)) for seed in SEEDS]
        assert any(5 not in run.text[5:] for run in runs)
        assert all(len(run.calls) == 12 for run in runs if 5 not in run.text[5:])


@pytest.mark.parametrize(("prompt", "generated"), [(5, 11), (4, 8), (1, 4), (6, 13), (3, 2)])
def test_block_diffusion_decodes_on_a_grid_from_zero(prompt: int, generated: int) -> None:
    """Blocks of 4 from position 0; the network sees nothing behind the block."""
    for seed in SEEDS:
        given, length = np.arange(prompt) % MASK, prompt + generated
        x = np.concatenate([given, np.full(generated, MASK)])
        toy, trace = Deep(length, seed, grid=4), []
        for start in range(prompt // 4 * 4, length, 4):
            stop = min(start + 4, length)
            while (x[:stop] == MASK).any():
                found = _full(toy, x[:stop])
                trace.append(_written(x, found, _surest(found, range(start, stop), 1)))
        run = play(stepwise(course(generated, prompt=given, grid=4)), toy)
        assert run.decoded == trace
        assert run.text.tolist() == x.tolist()
        for asks in run.calls:
            assert asks[0].visible % 4 == 0 or asks[0].visible == length
            assert not asks[0].rows[asks[0].visible :].any()
        # Finished blocks are exact: the same text from the rows of the block, also where the last is short, and where
        # the first step of a block is left out because it decodes nothing.
        for remasking in ("low_confidence", "maskgit_plus"):
            plain = play(stepwise(course(generated, prompt=given, grid=4, remasking=remasking)), toy)
            cached = play(
                stepwise(course(generated, prompt=given, grid=4, remasking=remasking, policy=Finished(4))),
                Deep(length, seed, grid=4),
            )
            assert cached.text.tolist() == plain.text.tolist()
            assert len(cached.calls) == len(plain.calls)
            assert cached.rows <= plain.rows
            if prompt + generated > 12:
                assert cached.rows < plain.rows


def _policies() -> list[Policy]:
    return [Decode(3), Decode(4, "paper"), Prefill(), PromptDecode(3), Prefix(), Dual(), Interval(3)]


@pytest.mark.parametrize("policy", _policies(), ids=str)
@pytest.mark.parametrize("shift", [None, "un", "right", "un_right"])
def test_policies_run_to_the_end_in_all_loops(policy: Policy, shift: Any) -> None:
    """Nothing is read that was never stored, nothing predicted from a row that is reused; fewer rows; same counts."""
    for remasking, block in (("low_confidence", 4), ("maskgit_plus", None), ("topk_margin", 6)):
        for seed in range(3):
            made = course(12, 12, block, remasking, shift=shift is not None, policy=policy, reuse=shift or "un_right")
            plain = course(12, 12, block, remasking, shift=shift is not None)
            toy = Deep(17, seed, shift=shift is not None)
            run = play(stepwise(made), toy)
            assert (run.text != MASK).all()
            assert run.rows < len(run.calls) * 17
            if shift != "right":  # there, positions wait for their logits
                counts = [len(positions) for positions in play(stepwise(plain), toy).decoded]
                assert [len(positions) for positions in run.decoded] == counts


def test_refreshing_at_every_step_is_no_cache() -> None:
    for policy in (Decode(1), Interval(1), Greedy(1)):
        remasking = "random" if policy.needs_order else "low_confidence"
        for seed in SEEDS:
            runs = []
            for chosen in (None, policy):
                made = course(12, 6, 6, remasking, policy=chosen, generator=np.random.default_rng(seed))
                runs.append(play(stepwise(made), Deep(17, seed)))
            assert runs[0].text.tolist() == runs[1].text.tolist()


def test_a_cache_is_not_exact_in_the_toy() -> None:
    # Else the tests of exact caches above and of self-speculation would say nothing.
    different = 0
    for seed in range(20):
        texts = [play(stepwise(course(12, policy=policy)), Deep(17, seed)).text for policy in (None, Dual(), Decode(8))]
        different += texts[0].tolist() != texts[1].tolist() or texts[0].tolist() != texts[2].tolist()
    assert different > 5


@pytest.mark.parametrize(("share", "computed"), [(1.0, 11), (11 / 16, 11), (0.68, 16), (0.1, 16)])
def test_steps_that_would_compute_more_than_a_share_of_the_rows_compute_all(share: float, computed: int) -> None:
    run = play(stepwise(course(11, policy=Prefill(), full_above=share)), Deep(16))
    assert {int(ask.rows.sum()) for asks in run.calls[1:] for ask in asks} == {computed}


@pytest.mark.parametrize("policy", [Decode(3), Prefix(), Dual(), Interval(3)], ids=str)
@pytest.mark.parametrize("remasking", ["low_confidence", "maskgit_plus"])
def test_a_block_begins_with_all_rows_also_where_its_first_step_is_left_out(policy: Policy, remasking: str) -> None:
    made = course(12, block=4, remasking=remasking, policy=policy)
    assert made.start.index == (remasking == "maskgit_plus")
    run = play(stepwise(made), Deep(17))
    seen: set[int] = set()
    for asks in run.calls:
        block = int((asks[0].positions[0] - 5) // 4)
        assert asks[0].is_whole or block in seen
        seen.add(block)
    assert seen == {0, 1, 2}


def test_no_step_is_left_out_where_confidence_decides() -> None:
    assert course(12, remasking="maskgit_plus").start.index == 1
    assert course(12, remasking="maskgit_plus", rule=Rule("dream", threshold=0.9)).start.index == 0
    assert course(12, remasking="origin").start.index == 0


def _scripted(steps: list[dict[str, Any]]) -> Any:
    """Decodes the given positions, whatever the rows."""
    wanted = iter(steps)

    def toy(ask: Ask) -> Prediction:
        chosen = next(wanted)["decoded"]
        confidence = np.array([2.0 - chosen.index(p) / 10 if p in chosen else 0.5 for p in ask.positions.tolist()])
        return Prediction(ask.positions, np.zeros(len(confidence), int), confidence, confidence, confidence)

    return toy


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["kind"].startswith("dkv_")], ids=lambda case: case["id"]
)
def test_rows_of_the_oracles(case: dict[str, Any]) -> None:
    """A whole run computes the rows of the oracle: decoded tokens are reused one step late, not at once."""
    setting, steps = case["setting"], case["steps"]
    prompt, generated = setting["prompt"], setting["length"] - setting["prompt"]
    blocks = 1 + max(step.get("block", 0) for step in steps)
    greedy = case["kind"] == "dkv_greedy"
    refresh = setting["refresh"]
    policy: Policy = Greedy(refresh, setting["window"]) if greedy else Decode(refresh, setting["form"])
    made = course(
        generated,
        len(steps),
        generated // blocks,
        "random" if greedy else "low_confidence",
        np.zeros(prompt, int),
        policy=policy,
    )
    if greedy:
        assert made.order is not None
        for rank, p in enumerate([p for step in steps for p in step["decoded"]]):
            made.order[p] = rank
    run = play(stepwise(made), _scripted(steps))
    assert [np.flatnonzero(asks[0].rows).tolist() for asks in run.calls] == [step["compute"] for step in steps]
    assert run.rows == case["rows_computed"]


def test_an_interval_reuses_what_was_known_at_the_last_refresh() -> None:
    run = play(stepwise(course(6, policy=Interval(3))), Deep(11))
    known = [asks[0].tokens != MASK for asks in run.calls]
    for step, asks in enumerate(run.calls):
        wanted = np.ones(11, dtype=bool) if step % 3 == 0 else ~known[step // 3 * 3]
        assert asks[0].rows.tolist() == wanted.tolist()


def _oracle(case: dict[str, Any], counts: tuple[int, ...]) -> Course:
    """The course of an oracle: some positions are known inside of what is generated."""
    start = np.array(case["start"])
    made = Course(start[:1], len(start) - 1, len(start) - 1, None, Conventions(-1), Sampler(), Rule())
    made.start = State(start, start >= 0, np.zeros(len(start), dtype=bool), counts=counts)
    return made


def _case(name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(case for case in CASES if case["id"] == name)
    return found


def test_the_oracle_step_by_step() -> None:
    case = _case("ssd_toy_stepwise")
    made, toy = _oracle(case, (1,) * 7), left_to_right
    first = toy(made.ask(made.start))
    for p, token, confidence in zip(first.positions.tolist(), first.tokens, first.confidence, strict=True):
        assert case["first_outputs"][str(p)] == [token, pytest.approx(confidence, abs=1e-6)]
    run = play(stepwise(made), toy)
    texts = [asks[0].tokens for asks in run.calls] + [run.text]
    trace = [[int(p), int(b[p])] for a, b in pairwise(texts) for p in np.flatnonzero(a != b)]
    assert trace == case["trace"]
    assert run.text.tolist() == case["final"]
    assert len(run.calls) == case["forward_calls"]


def test_the_oracle_without_verification() -> None:
    case = _case("ssd_toy_unverified_5")
    run = play(stepwise(_oracle(case, (case["per_step"], 2))), left_to_right)
    assert run.text.tolist() == case["final"]
    assert len(run.calls) == case["forward_calls"]
    assert (run.text.tolist() == _case("ssd_toy_stepwise")["final"]) == case["equals_stepwise"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": 0.5, "factor": 1.0}, "give one of threshold and factor"),
        ({"threshold": 1.5}, "threshold must be in 0..1"),
        ({"threshold": float("nan")}, "threshold must be in 0..1"),
        ({"factor": -1.0}, "factor must be 0 or more"),
        ({"entropy_bound": float("inf")}, "entropy_bound must be 0 or more"),
    ],
)
def test_rules_that_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Rule(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"generated": 12, "block": 5}, "cannot be cut into blocks of 5"),
        ({"generated": 12, "block": 4, "steps": 8}, "cannot be shared evenly by 3 blocks"),
        ({"rule": Rule(threshold=0.9), "remasking": "random"}, "threshold chooses positions by how sure"),
        ({"rule": Rule(factor=0.9), "remasking": "entropy"}, "factor chooses positions by how sure"),
        ({"rule": Rule(entropy_bound=0.9), "remasking": "origin"}, "use .* or entropy"),
    ],
)
def test_courses_that_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        course(**options)


def test_a_policy_that_reuses_what_was_never_computed_is_stopped() -> None:
    class Wrong(Dual):
        def reused(self, view: Any) -> Any:
            return np.arange(len(view.known)) < 2

    with pytest.raises(RuntimeError, match=r"step 0 .* reuses rows 0, 1, which were never computed"):
        play(stepwise(course(12, policy=Wrong())), Deep(17))
    assert isinstance(play(stepwise(course(12)), Deep(17)), Run)
