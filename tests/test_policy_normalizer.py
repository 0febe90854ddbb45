"""Does a normalizer map ranges to -1..1 and back, and keep its precision wherever it goes?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffaccel.pipelines.policies.normalizer import LinearNormalizer


def test_the_normalizer_maps_ranges_to_one() -> None:
    values = torch.tensor([[0.0, 5.0, 1.0], [4.0, 5.0, 3.0], [1.0, 5.0, 2.0]])
    made = LinearNormalizer.of(values, values)
    expected = torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0], [-0.5, 0.0, 0.0]])  # a constant only moves to 0
    assert torch.equal(made.observation(values), expected)
    assert torch.equal(made.action(values.double()), expected)
    assert torch.equal(made.unnormalized_action(expected), values)


def test_back_and_forth_is_nothing() -> None:
    observations, actions = 100 + torch.randn(50, 4), 1e-3 * torch.randn(50, 2)
    made = LinearNormalizer.of(observations, actions)
    assert made.observation(observations).abs().amax(0) == pytest.approx(torch.ones(4), abs=1e-4)
    torch.testing.assert_close(made.unnormalized_action(made.action(actions)), actions)


@pytest.mark.parametrize("move", [LinearNormalizer.half, lambda made: made.to(torch.bfloat16), LinearNormalizer.double])
def test_it_stays_in_single_precision(move: object, tmp_path: Path) -> None:
    made = LinearNormalizer.of(torch.randn(50, 4), torch.randn(50, 2))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    moved = move(made)
    moved.save_pretrained(tmp_path)
    for found in (moved, LinearNormalizer.from_pretrained(tmp_path, torch_dtype=torch.float16)):
        assert {name: value.dtype for name, value in found.state_dict().items()} == dict.fromkeys(before, torch.float32)
        assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())
