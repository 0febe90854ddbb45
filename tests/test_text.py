"""Are equal tokens counted where they should be?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffaccel.metrics.text import exact_match, token_match

PAD = 0


def test_the_share_of_equal_tokens_is_of_each_sample() -> None:
    tokens, reference = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 8], [5, 9, 9, 8]])
    assert token_match(tokens, reference).tolist() == [1, 0.5]
    assert exact_match(tokens, reference).tolist() == [True, False]


def test_padding_of_both_does_not_count_and_padding_of_one_is_a_difference() -> None:
    tokens = torch.tensor([[5, 6, PAD, PAD], [5, PAD, PAD, PAD], [5, 6, 7, PAD]])
    reference = torch.tensor([[5, 9, PAD, PAD], [5, 6, 7, 8], [5, 6, 7, PAD]])
    assert token_match(tokens, reference, PAD).tolist() == [0.5, 0.25, 1]
    assert exact_match(tokens, reference, PAD).tolist() == [False, False, True]
    assert token_match(tokens, reference).tolist() == [0.75, 0.25, 1]


def test_two_empty_texts_are_equal() -> None:
    empty = torch.full((1, 3), PAD)
    assert token_match(empty, empty, PAD).tolist() == [1]
    assert exact_match(empty, empty, PAD).tolist() == [True]


@pytest.mark.parametrize(
    ("tokens", "reference", "error", "message"),
    [
        (torch.zeros(1, 2).long(), torch.zeros(1, 3).long(), ValueError, "pad the shorter one"),
        (torch.zeros(3).long(), torch.zeros(3).long(), ValueError, r"\(n, length\)"),
        (torch.zeros(0, 3).long(), torch.zeros(0, 3).long(), ValueError, "at least one token"),
        (torch.zeros(1, 3), torch.zeros(1, 3), TypeError, "integers, got torch.float32"),
    ],
)
def test_bad_tokens_are_refused(tokens: Tensor, reference: Tensor, error: type[Exception], message: str) -> None:
    for metric in (token_match, exact_match):
        with pytest.raises(error, match=message):
            metric(tokens, reference)
