"""A forward against stored keys and values is the plain forward, whichever rows and lanes it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffaccel.dlm.slots import SlotCache
from tests.dlm.tiny import VOCABULARY, model

LENGTH = 11
KINDS = pytest.mark.parametrize("kind", ["llama", "qwen2"])
ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def _tokens(batch: int = 1, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def _plain(network: Any, tokens: Tensor) -> Tensor:
    """Each sequence alone, without any cache."""
    with torch.no_grad():
        return torch.cat([network(row[None], is_causal=False, use_cache=False).logits for row in tokens])


def _cached(
    network: Any,
    cache: SlotCache,
    tokens: Tensor,
    rows: list[list[int]] | None = None,
    lanes: list[int] | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Logits of some rows of tokens (batch, length), against the slots."""
    places = torch.arange(tokens.shape[1])[None] if rows is None else torch.tensor(rows)
    cache.place(None if rows is None else places, None if lanes is None else torch.tensor(lanes))
    inputs = tokens if rows is None else tokens.gather(1, places)
    with torch.no_grad():
        return network(
            inputs,
            position_ids=places,
            attention_mask=visible,
            past_key_values=cache,
            use_cache=True,
            is_causal=False,
        ).logits


def _same(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-10


@KINDS
@ATTENTIONS
def test_all_rows_and_then_some_of_them(kind: str, attention: str) -> None:
    network, tokens, cache = model(kind, attention), _tokens(2), SlotCache(LENGTH)
    wanted = _plain(network, tokens)
    _same(_cached(network, cache, tokens), wanted)
    rows = [[2, 3, 7], [0, 9, 10]]
    _same(_cached(network, cache, tokens, rows), torch.stack([wanted[i, rows[i]] for i in range(2)]))


@KINDS
@ATTENTIONS
def test_fresh_rows_replace_what_was_stored(kind: str, attention: str) -> None:
    # In one layer, keys and values depend on their own token only: changed rows computed anew make it the other text.
    network, cache = model(kind, attention, num_hidden_layers=1), SlotCache(LENGTH)
    before, after = _tokens(seed=1), _tokens(seed=1)
    after[0, [1, 4, 8]] = (after[0, [1, 4, 8]] + 5) % VOCABULARY
    _cached(network, cache, before)
    wanted = _plain(network, after)
    _same(_cached(network, cache, after, [[8, 1, 4]]), wanted[:, [8, 1, 4]])
    _same(_cached(network, cache, after, [[0, 10]]), wanted[:, [0, 10]])  # rows that did not change see them, too
    assert float((_plain(network, before) - wanted)[:, [0, 10]].abs().max()) > 1e-3


def test_rows_are_reused_as_they_were() -> None:
    # Rows that are not computed are those of the text before, in every layer: no other text explains the result.
    network, cache = model(), SlotCache(LENGTH)
    before, after = _tokens(seed=1), _tokens(seed=2)
    _cached(network, cache, before)
    held = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    found = _cached(network, cache, after, [[3, 5]])
    for layer, (keys, values) in zip(cache.layers, held, strict=True):
        others = [row for row in range(LENGTH) if row not in (3, 5)]
        assert torch.equal(layer.keys[:, :, others], keys[:, :, others])
        assert torch.equal(layer.values[:, :, others], values[:, :, others])
        assert not torch.isclose(layer.keys[:, :, [3, 5]], keys[:, :, [3, 5]]).all()
    assert float((found - _plain(network, after)[:, [3, 5]]).abs().max()) > 1e-3


@KINDS
@ATTENTIONS
def test_some_of_the_lanes_in_any_order(kind: str, attention: str) -> None:
    network, tokens, cache = model(kind, attention), _tokens(3), SlotCache(LENGTH, lanes=3)
    wanted = _plain(network, tokens)
    _same(_cached(network, cache, tokens[[2, 0]], lanes=[2, 0]), wanted[[2, 0]])
    _same(_cached(network, cache, tokens[[1]], lanes=[1]), wanted[[1]])
    rows = [[4, 6], [1, 2]]
    found = _cached(network, cache, tokens[[1, 2]], rows, lanes=[1, 2])
    _same(found, torch.stack([wanted[1, rows[0]], wanted[2, rows[1]]]))
    _same(_cached(network, cache, tokens, [[5]] * 3), wanted[:, [5]])


def test_a_lane_takes_over_anothers_rows() -> None:
    network, tokens, cache = model(), _tokens(2), SlotCache(LENGTH, lanes=3)
    wanted = _plain(network, tokens)
    _cached(network, cache, tokens, lanes=[0, 1])
    cache.fork(0, [1, 2])
    for lane in (1, 2):
        _same(_cached(network, cache, tokens[:1], [[2, 8]], lanes=[lane]), wanted[:1, [2, 8]])
    _cached(network, cache, tokens[1:], lanes=[0])  # what became of the source does not matter
    _same(_cached(network, cache, tokens[:1], [[3]], lanes=[2]), wanted[:1, [3]])


def test_an_empty_cache_and_no_target_fork_nothing() -> None:
    cache = SlotCache(LENGTH, lanes=2)
    cache.fork(0, [1])
    assert not cache.is_filled
    network = model()
    _cached(network, cache, _tokens(2))
    held = [layer.keys.clone() for layer in cache.layers]
    cache.fork(0, [])
    assert cache.is_filled
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, held, strict=True))


def test_slots_are_added_at_the_end() -> None:
    network, tokens, cache = model(num_hidden_layers=1), _tokens(), SlotCache(6)
    _cached(network, cache, tokens[:, :6])
    cache.grow(LENGTH)
    new = list(range(6, LENGTH))
    _same(_cached(network, cache, tokens, [new]), _plain(network, tokens)[:, new])
    assert cache.length == LENGTH
    with pytest.raises(ValueError, match="there are 11, asked for 6"):
        cache.grow(6)


@KINDS
@ATTENTIONS
def test_sequences_of_two_lengths_are_each_alone(kind: str, attention: str) -> None:
    network, tokens, cache = model(kind, attention), _tokens(2), SlotCache(LENGTH)
    visible = torch.arange(LENGTH) < torch.tensor([[7], [LENGTH]])
    short, long = _plain(network, tokens[:1, :7]), _plain(network, tokens[1:])
    found = _cached(network, cache, tokens, visible=visible)
    _same(found[:1, :7], short)
    _same(found[1:], long)
    # Two rows of the short one, filled up by computing the first of them again, beside three of the long one.
    rows = [[6, 6, 1], [2, 10, 9]]
    found = _cached(network, cache, tokens, rows, visible=visible)
    _same(found[0, [0, 2]], short[0, [6, 1]])
    _same(found[0, 0], found[0, 1])
    _same(found[1], long[0, rows[1]])
    _same(_cached(network, cache, tokens, [[0], [0]], visible=visible)[:, 0], torch.stack([short[0, 0], long[0, 0]]))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_bytes_of_the_slots(kv_heads: int) -> None:
    network, cache = model(num_key_value_heads=kv_heads), SlotCache(LENGTH)
    assert cache.nbytes == 0
    _cached(network, cache, _tokens(3))
    layers, head_dim, bytes_each = 2, 8, 8
    assert cache.nbytes == 2 * layers * 3 * kv_heads * LENGTH * head_dim * bytes_each


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        SlotCache(0)
    for recurrent in (SlotCache(3).update_conv_state, SlotCache(3).update_recurrent_state):
        with pytest.raises(NotImplementedError, match="recurrent or convolutional"):
            recurrent(torch.zeros(1), 0)
