"""Does the bubbling union of BAC refresh the blocks it should and no other, and does what it is there for happen?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffaccel.methods.bac import bubbling_loss, bubbling_union, kind_of, worst_blocks

ORACLE = json.loads((Path(__file__).parent / "oracles" / "bac.json").read_text())
RELATIVE, ABSOLUTE = ORACLE["tolerance"]["float64_relative"], ORACLE["tolerance"]["float64_absolute"]


def cases(kind: str) -> list[dict[str, Any]]:
    return [case for case in ORACLE["cases"] if case["kind"] == kind]


def block_names(layers: int) -> list[str]:
    return [f"decoder.layers.{i}.{kind}" for i in range(layers) for kind in ("sa", "ca", "ffn")]


@pytest.mark.parametrize("case", cases("bubbling"), ids=lambda case: case["id"])
def test_oracle_bubbling(case: dict[str, Any]) -> None:
    blocks, chosen = case["order"], case["chosen"]
    loss = {block: float(block in chosen) for block in blocks}
    assert bubbling_union(case["schedules"], loss, blocks, len(chosen)) == case["expected"]
    rows = bubbling_union([case["schedules"][block] for block in blocks], list(loss.values()), blocks, len(chosen))
    assert rows == [case["expected"][block] for block in blocks]


@pytest.mark.parametrize("case", cases("ranking"), ids=lambda case: case["id"])
def test_oracle_ranking(case: dict[str, Any]) -> None:
    for key, sums in (("l1_sum", True), ("l1_mean", False)):
        loss = {block: bubbling_loss(features, sums=sums) for block, features in case["features"].items()}
        assert loss == pytest.approx(case[key], rel=RELATIVE, abs=ABSOLUTE)
        assert worst_blocks(loss, case["order"], len(loss)) == case["ranking"]


@pytest.mark.parametrize("case", cases("bubbling_from_features"), ids=lambda case: case["id"])
def test_oracle_bubbling_from_features(case: dict[str, Any]) -> None:
    loss = {block: bubbling_loss(features) for block, features in case["features"].items()}
    assert worst_blocks(loss, case["order"], case["bubbling"]) == case["chosen"]
    union = bubbling_union(case["schedules"], loss, case["order"], case["bubbling"])
    assert union == case["expected"]
    assert sum(map(len, union.values())) == case["total_updates"]


@settings(deadline=None)
@given(layers=st.integers(1, 4), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_what_a_union_keeps(layers: int, seed: int, data: st.DataObject) -> None:
    rng, blocks = np.random.default_rng(seed), block_names(layers)
    schedules = {block: [0, *sorted(rng.choice(np.arange(1, 12), 3, replace=False).tolist())] for block in blocks}
    loss = {block: float(rng.random()) for block in blocks}
    n = data.draw(st.integers(0, len(blocks) + 3))
    union = bubbling_union(schedules, loss, blocks, n)
    assert list(union) == blocks
    chosen = worst_blocks(loss, blocks, n)
    assert chosen == sorted(blocks, key=lambda block: -loss[block])[:n]
    for i, block in enumerate(blocks):
        needed = set(schedules[block])
        if block in chosen:  # each downstream feed-forward block's own row is contained
            needed |= {step for later in blocks[i + 1 :] if kind_of(later) == "ffn" for step in schedules[later]}
        assert union[block] == sorted(needed)
    assert union[blocks[-1]] == schedules[blocks[-1]]
    # Mappings may come in any order, and the names alone say what is upstream.
    shuffled = rng.permutation(blocks).tolist()
    again = bubbling_union({b: schedules[b] for b in shuffled}, {b: loss[b] for b in shuffled}, blocks, n)
    assert again == union


def test_a_union_leaves_what_it_was_given_alone() -> None:
    blocks, rows = block_names(1), [[0, 3], [0, 4], [0, 5]]
    assert bubbling_union(rows, [3.0, 2.0, 1.0], blocks, 9) == [[0, 3, 5], [0, 4, 5], [0, 5]]
    unchanged = bubbling_union(rows, [3.0, 2.0, 1.0], blocks, 0)
    assert unchanged == rows == [[0, 3], [0, 4], [0, 5]]
    assert all(one is not other for one, other in zip(unchanged, rows, strict=True))


def test_of_equal_losses_the_earlier_block() -> None:
    assert worst_blocks([1.0, 2.0, 2.0], block_names(1), 2) == ["decoder.layers.0.ca", "decoder.layers.0.ffn"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n": -1}, "0 or more"),
        ({"loss": [1.0, 2.0]}, "one loss for each of the 3"),
        ({"loss": {"decoder.layers.0.sa": 1.0}}, r"decoder\.layers\.0\.ca"),
        ({"loss": [1.0, float("nan"), 1.0]}, "NaN"),
        ({"schedules": [[0], [0]]}, "one schedule for each of the 3"),
        ({"schedules": [[0], [1], [0]]}, "rising from 0"),
        ({"blocks": ["a.sa", "a.ca", "a.mlp"]}, "sa, ca, ffn"),
        ({"blocks": ["a.sa", "a.sa", "a.ffn"]}, "name of its own"),
    ],
)
def test_unions_refused(change: dict[str, Any], said: str) -> None:
    given = {"schedules": [[0], [0], [0]], "loss": [1.0, 2.0, 3.0], "blocks": block_names(1), "n": 1}
    with pytest.raises(ValueError, match=said):
        bubbling_union(**{**given, **change})


@pytest.mark.parametrize("sums", [True, False])
def test_loss_is_the_mean_over_pairs(sums: bool) -> None:
    features = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    pairs = (features.flatten(1).unsqueeze(0) - features.flatten(1).unsqueeze(1)).abs()
    expected = pairs.sum(-1).mean() if sums else pairs.mean(-1).sum() / (9 * 8)
    assert bubbling_loss(features, sums=sums) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("features", "said"), [(np.ones((1, 3)), "2 steps"), (np.full((3, 3), np.nan), "NaN")])
def test_losses_refused(features: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bubbling_loss(features)


def surge(layer: nn.TransformerDecoderLayer, x: Tensor, error: Tensor) -> Tensor:
    """Proposition 3.1 of the paper: what an error of its input does to a pre-norm feed-forward block, to first order.

    W_out diag(phi'(U)) W_in (A - B) error, with (A - B) the derivative of the layer norm: A = diag(gamma / sigma)
    (I - 11^T / d), B = diag(gamma / sigma) x^ x^T / d, and x^ the normalised input.
    """
    width = x.numel()
    sigma = (x.var(unbiased=False) + layer.norm3.eps).sqrt()
    normalised = (x - x.mean()) / sigma
    scale = torch.diag(layer.norm3.weight / sigma)
    centring = scale @ (torch.eye(width, dtype=x.dtype) - 1 / width)
    shrinking = scale @ torch.outer(normalised, normalised) / width
    u = layer.linear1(layer.norm3(x)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.gelu(u).sum(), u)
    return layer.linear2.weight @ (slope * (layer.linear1.weight @ ((centring - shrinking) @ error)))


@pytest.mark.parametrize("seed", range(3))
def test_the_surge_of_a_feed_forward_block_is_linear_in_the_error_it_takes_in(seed: int) -> None:
    torch.manual_seed(seed)
    layer = nn.TransformerDecoderLayer(32, 4, 128, activation="gelu", batch_first=True, norm_first=True)
    layer = layer.double().eval()
    nn.init.normal_(layer.norm3.weight, 1.0, 0.3)
    nn.init.normal_(layer.norm3.bias, 0.0, 0.3)
    x, direction = 2 * torch.randn(2, 32, dtype=torch.float64) + 0.5
    with torch.no_grad():
        clean, missed = layer._ff_block(layer.norm3(x)), []
    for size in (1e-1, 1e-2, 1e-3):
        error = size * x.norm() * direction / direction.norm()
        predicted = surge(layer, x, error).detach()
        with torch.no_grad():
            actual = layer._ff_block(layer.norm3(x + error)) - clean
        missed.append(float((predicted - actual).norm() / actual.norm()))
    assert missed[0] < 0.3
    # What the prediction leaves out falls tenfold with an error ten times smaller.
    assert missed[0] / missed[1] == pytest.approx(10, rel=0.5)
    assert missed[1] / missed[2] == pytest.approx(10, rel=0.2)
