"""Are the problems of the language model right, its splits apart, its batches and its loss what they say?"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits.denoiser import Recipe
from diffaccel.pipelines.bundled.language import python_source, tokenizer
from diffaccel.pipelines.bundled.language.batches import SHARES, TOKENS, Batches
from diffaccel.pipelines.bundled.language.model import LONGEST, build, matrices
from diffaccel.pipelines.bundled.language.problems import ANSWER, DIGITS, KINDS, TERMS, Problem, problems
from diffaccel.pipelines.bundled.language.train import LanguageTrainer


@cache
def shipped() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(bundled.text_path() / "tokenizer")


def totals_of(digits: str) -> str:
    numbers = [int(number) for number in digits.split(",")]
    return ",".join(f"{sum(numbers[: i + 1]):03}" for i in range(len(numbers)))


def sums_of(digits: str) -> str:
    return "".join(str(sum(map(int, digits[: i + 1])) % 4) for i in range(len(digits)))


SOLVED = {
    "totals": (rf"sum (\d{{3}}(?:,\d{{3}}){{{TERMS - 1}}})=", totals_of),
    "chain": (rf"mod ([0-3]{{{DIGITS}}})=", sums_of),
    "sorting": (rf"sort (\d{{{DIGITS}}})=", lambda digits: "".join(sorted(digits))),
}


def test_every_kind_of_problem_is_looked_at_here() -> None:
    assert SOLVED.keys() == KINDS.keys()


@pytest.mark.parametrize(
    ("text", "answer"),
    [("027,058,013,004,099", "027,085,098,102,201"), ("000,000,000,000,007", "000,000,000,000,007")],
)
def test_totals_worked_out_by_hand(text: str, answer: str) -> None:
    assert totals_of(text) == answer


def test_sums_worked_out_by_hand() -> None:
    assert sums_of("3102") == "3002"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "held-out"])
def test_problems_have_their_form_and_the_right_answer(kind: str, split: Any) -> None:
    form, solve = SOLVED[kind]
    found = problems(kind, 200, split)
    assert len({problem.prompt for problem in found}) == 200
    for problem in found:
        match = re.fullmatch(form, problem.prompt)
        assert match, problem.prompt
        assert problem.answer == solve(match[1])
        assert problem.split == split


@pytest.mark.parametrize("kind", KINDS)
def test_problems_are_the_same_every_time_and_others_for_another_seed(kind: str) -> None:
    first = problems(kind, 20)
    assert problems(kind, 30)[:20] == first
    assert not set(first) & set(problems(kind, 20, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_one_problem_in_eight_is_held_out(kind: str) -> None:
    random = Random(1)
    splits = Counter(KINDS[kind](random).split for _ in range(4000))
    assert 400 < splits["held-out"] < 600


def test_unknown_kinds_and_splits_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=f"called 'poems'; choose from {', '.join(KINDS)}"):
        problems("poems", 1)
    for ask in (lambda: bundled.text_problems("chain", 1, "test"), lambda: bundled.text_prompts(1, "test")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="split must be 'train' or 'held-out', got 'test'"):
            ask()


def test_modules_of_the_splits_are_apart_and_exclude_tests() -> None:
    train, held_out = (set(python_source.files(split)) for split in ("train", "held-out"))
    assert not train & held_out
    assert len(train) / 30 < len(held_out) < len(train) / 8
    assert not [path for path in train | held_out if {"test", "site-packages"} & set(path.parts)]
    joined = python_source.text("held-out")
    assert all(path.read_text(encoding="utf-8", errors="replace") in joined for path in held_out)
    assert python_source.text("held-out", 1000) == joined[:1000]


def test_digits_are_tokens_of_their_own_and_text_survives() -> None:
    words = shipped()
    source = python_source.text("held-out", 3000)
    assert words.decode(words(source)["input_ids"]) == source
    pieces = words.convert_ids_to_tokens(words("x1234 = [567]")["input_ids"])
    assert all(piece.isdigit() == (len(piece) == 1 and piece in "1234567") for piece in pieces)
    assert len(words) == tokenizer.VOCABULARY
    assert (words.mask_token, words.eos_token, words.padding_side) == (tokenizer.MASK, tokenizer.END, "left")


def test_tokenizer_is_built_from_the_source() -> None:
    made = tokenizer.build(limit=20_000)
    assert made.mask_token_id != made.eos_token_id == made.pad_token_id
    assert len(made("def function(self):")["input_ids"]) < len("def function(self):") / 1.5
    assert made.convert_ids_to_tokens(made("42")["input_ids"]) == ["4", "2"]


@cache
def batches(seed: int = 0) -> Batches:
    """Of the held-out split, whose source is short."""
    return Batches(shipped(), "held-out", seed)


def solved(prompt: str) -> Problem:
    """The problem that a prompt ends with."""
    for form, solve in SOLVED.values():
        if match := re.search(f"{form}$", prompt):
            return Problem(match[0], solve(match[1]))
    raise AssertionError(f"no problem at the end of {prompt!r}")


def check_answers(tokens: Tensor, begins: Tensor) -> None:
    words = shipped()
    for row, begin in zip(tokens, begins.tolist(), strict=True):
        assert begin == len(row) - ANSWER
        problem, answer = solved(words.decode(row[:begin])), row[begin:].tolist()
        size = answer.index(words.eos_token_id)
        assert words.decode(answer[:size]) == problem.answer
        assert set(answer[size:]) == {words.eos_token_id}
        assert problem.split == "held-out"


def test_short_batches_hold_a_prompt_and_its_answer_up_to_the_end() -> None:
    for _ in range(6):
        tokens, begins = batches().short()
        check_answers(tokens, begins)
        assert TOKENS - tokens.shape[1] < tokens.numel() <= TOKENS
        assert len({solved(shipped().decode(row[:-ANSWER])).prompt.split()[0] for row in tokens}) == 1


@pytest.mark.parametrize(("progress", "longest"), [(0.0, 256), (0.5, 1024), (0.9, LONGEST)])
def test_problems_after_source_get_longer_while_the_training_goes_on(
    progress: float, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches(), "progress", progress)
    monkeypatch.setattr(batches(), "random", Random(3))
    found = [batches().after() for _ in range(40)]
    for tokens, begins in found[:10]:
        check_answers(tokens, begins)
    sizes = {tokens.shape[1] for tokens, _ in found}
    assert max(sizes) == longest
    assert min(sizes) == 128


def test_passages_are_pieces_of_the_source_half_of_them_begun() -> None:
    source = shipped().decode(batches().source)
    tokens, begins = zip(*(batches().passages() for _ in range(20)), strict=True)
    begun = torch.cat(begins)
    assert 0.3 < (begun > 0).float().mean() < 0.7
    assert begun.max() < 128
    assert tokens[0].shape == (TOKENS // 256, 256)
    assert all(shipped().decode(row[1:-1]).strip("�") in source for row in tokens[0])


def test_batches_are_drawn_in_their_shares_and_by_their_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for _ in range(2):
        monkeypatch.setattr(batches(), "random", Random(5))
        drawn.append([batches().draw() for _ in range(12)])
    for (first, begins), (again, same) in zip(*drawn, strict=True):
        assert torch.equal(first, again)
        assert torch.equal(begins, same)
    assert sum(SHARES) == pytest.approx(1)
    kinds = Counter(batches().draw()[1].unique().numel() > 1 for _ in range(80))  # source begins anywhere
    assert abs(kinds[True] / 80 - SHARES[2]) < 4 * (SHARES[2] * (1 - SHARES[2]) / 80) ** 0.5


class Logits(torch.nn.Module):
    """Says the same of every token, and keeps what it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.seen: list[Tensor] = []

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        self.seen.append(input_ids)
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def trainer(folder: Path) -> LanguageTrainer:
    model = build(shipped())
    return LanguageTrainer(model, shipped().mask_token_id, Recipe(drop=0.0), folder)


def test_loss_masks_answers_only_each_at_least_once_and_in_all_shares(tmp_path: Path) -> None:
    made, (tokens, begins) = trainer(tmp_path), batches().short()
    model = Logits(torch.zeros(len(shipped())))
    made.model = model
    for _ in range(20):
        made.loss(model, tokens, begins)
    masked = torch.stack(model.seen) == shipped().mask_token_id
    for row, begin in enumerate(begins):
        assert not masked[:, row, :begin].any()
    answers = masked[:, :, -ANSWER:]
    given = torch.stack(model.seen)
    assert torch.equal(given[~masked], tokens.expand_as(given)[~masked])
    shares = answers.float().mean(2)
    assert shares.min() >= 1 / ANSWER
    assert shares.max() == 1
    # Shares are spread evenly over a batch, so its mean is known: (i + u) / n for i below n, one u for all.
    assert abs(shares.mean() - 0.5) < 0.03


def test_loss_is_the_logarithm_of_the_vocabulary_where_nothing_is_known(tmp_path: Path) -> None:
    made, (tokens, begins) = trainer(tmp_path), batches().short()
    model = Logits(torch.zeros(len(shipped())))
    made.model = model
    losses = [made.loss(model, tokens, begins).item() for _ in range(60)]
    # Each masked token counts 1 / (share * answer), so that a batch counts one an answer in the mean.
    assert sum(losses) / len(losses) == pytest.approx(torch.tensor(len(shipped())).log().item(), rel=0.05)


def test_matrices_are_those_inside_the_layers() -> None:
    model = build(shipped())
    inside = {id(weight) for weight in matrices(model)}
    assert len(inside) == 7 * model.config.num_hidden_layers
    assert id(model.lm_head.weight) not in inside
    assert model.config.is_causal is False
