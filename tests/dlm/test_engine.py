"""One forward for what many sequences ask: each gets what it would have got alone, and all is counted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffaccel.dlm.adapters import Denoiser
from diffaccel.dlm.engine import Engine
from diffaccel.dlm.scores import Prediction, Sampler
from diffaccel.dlm.state import Ask
from tests.dlm.tiny import MASK, model

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6]]
GENERATED = 4


def _engine(shift: bool = False, **options: Any) -> Engine:
    denoiser = Denoiser(model("qwen2" if shift else "llama"), shift)
    lengths = [len(prompt) for prompt in PROMPTS]
    return Engine(denoiser, Sampler(), lengths, GENERATED, MASK, [None, None], **options)


def _text(number: int, *written: int) -> NDArray[np.int64]:
    return np.array(PROMPTS[number] + list(written) + [MASK] * (GENERATED - len(written)))


def _ask(tokens: NDArray[np.int64], rows: Iterable[int] | None = None, lane: int = 0, source: int | None = None) -> Ask:
    """All masked positions, from all rows or from some."""
    flags = np.ones(len(tokens), dtype=bool) if rows is None else np.isin(np.arange(len(tokens)), list(rows))
    masked = np.flatnonzero(tokens == MASK)
    return Ask(tokens, flags, masked, len(tokens), 0, lane, source)


def _plain(engine: Engine, tokens: NDArray[np.int64], prompt: int = 0, scale: float = 0.0) -> Prediction:
    """The sequence alone, without any cache."""

    def logits(x: NDArray[np.int64]) -> Tensor:
        with torch.no_grad():
            found: Tensor = engine.denoiser.model(torch.from_numpy(x)[None], is_causal=False, use_cache=False).logits[0]
        return torch.cat([found[:1], found[:-1]]) if engine.denoiser.shift else found

    found = logits(tokens)
    if scale:
        without = tokens.copy()
        without[:prompt] = MASK
        found = logits(without) + (scale + 1) * (found - logits(without))
    found[:, MASK] = -torch.inf
    masked = np.flatnonzero(tokens == MASK)
    return Sampler().predict(found[masked], masked)


def _same(found: Prediction, wanted: Prediction) -> None:
    assert found.positions.tolist() == wanted.positions.tolist()
    assert found.tokens.tolist() == wanted.tokens.tolist()
    for name in ("confidence", "entropy", "gap"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=1e-6)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_two_lengths_in_one_forward(shift: bool, cache: bool, scale: float) -> None:
    engine = _engine(shift, cache=cache, scale=scale)
    texts = [_text(0), _text(1, 7)]
    found = engine.forward([(number, _ask(text)) for number, text in enumerate(texts)])
    for number, text in enumerate(texts):
        _same(found[number], _plain(engine, text, len(PROMPTS[number]), scale))
    times = 2 if scale else 1
    assert (engine.counts.forwards, engine.counts.rows, engine.counts.whole) == (1, 16 * times, 16 * times)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_each_computes_its_own_rows(shift: bool, scale: float) -> None:
    engine = _engine(shift, cache=True, scale=scale)
    texts = [_text(0, 8, 8), _text(1)]
    engine.forward([(number, _ask(text)) for number, text in enumerate(texts)])
    rows = [[4, 5, 6], [4, 5, 6, 7, 8]] if shift else [[5, 6], [2, 5, 6, 7, 8]]
    found = engine.forward([(number, _ask(text, rows[number])) for number, text in enumerate(texts)])
    for number, text in enumerate(texts):
        _same(found[number], _plain(engine, text, len(PROMPTS[number]), scale))
    # One alone, whose lane is not the first.
    _same(engine.forward([(1, _ask(texts[1], rows[1]))])[0], _plain(engine, texts[1], len(PROMPTS[1]), scale))
    times, computed = (2 if scale else 1), len(rows[0]) + 2 * len(rows[1])
    assert engine.counts.forwards == 3
    assert engine.counts.rows == times * (16 + computed)
    assert engine.counts.whole == times * (16 + 16 + 9)
    assert [np.flatnonzero(one).tolist() for one in engine.counts.first] == [list(range(7)), rows[0]]


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_a_lane_continues_from_another(scale: float) -> None:
    engine = _engine(cache=True, lanes=3, scale=scale)
    texts = [_text(0, 8), _text(1, 9)]
    engine.forward([(number, _ask(text)) for number, text in enumerate(texts)])
    asks = [
        (1, _ask(texts[1], range(6, 9), lane=2, source=0)),
        (0, _ask(texts[0], range(4, 7), lane=0)),
        (0, _ask(texts[0], range(4, 7), lane=1, source=0)),
    ]
    for (number, _), found in zip(asks, engine.forward(asks), strict=True):
        _same(found, _plain(engine, texts[number], len(PROMPTS[number]), scale))
    (again,) = engine.forward([(1, _ask(texts[1], range(6, 9), lane=2))])
    _same(again, _plain(engine, texts[1], len(PROMPTS[1]), scale))
    assert engine.cache is not None
    assert engine.cache.nbytes == (2 if scale else 1) * 2 * 3 * 2 * 2 * 2 * 9 * 8 * 8


def test_a_run_yields_every_state_and_the_end() -> None:
    engine = _engine()

    def decoder(number: int, steps: int) -> Any:
        text = _text(number)
        for _ in range(steps):
            (found,) = yield [_ask(text)]
            text = text.copy()
            text[found.positions[0]] = found.tokens[0]
        return text

    states = list(engine.run([decoder(0, 1), decoder(1, 3)]))
    masks = [[int((one == MASK).sum()) for one in state] for state in states]
    assert masks == [[4, 4], [3, 3], [3, 2], [3, 1]]
    assert engine.counts.forwards == 3
    assert engine.counts.rows == 7 + 3 * 9
    assert engine.cache is None
