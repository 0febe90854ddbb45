"""Tokens and confidences against references written from the loops of LLaDA and Dream, one position at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffaccel.dlm.scores import Prediction, Sampler, guided

POSITIONS = np.array([4, 5, 7, 9, 12], dtype=np.intp)


def _logits(count: int = len(POSITIONS), vocabulary: int = 9, scale: float = 2.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed))


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(values - values.max())
    found: NDArray[np.float64] = shifted / shifted.sum()
    return found


def _dream_probabilities(
    row: NDArray[np.float64], temperature: float, top_p: float | None, top_k: int | None
) -> NDArray[np.float64]:
    """Dream's distribution of one position: temperature, then the nucleus, then the k likeliest."""
    row = row / temperature if temperature else row.copy()
    if top_p is not None:
        kept, total = [], 0.0
        for token in np.argsort(-row):
            if total > top_p:
                break
            kept.append(token)
            total += _softmax(row)[token]
        row[[token for token in range(len(row)) if token not in kept]] = -np.inf
    if top_k is not None:
        row[np.argsort(-row)[top_k:]] = -np.inf
    return _softmax(row)


def _sampled(sampler: Sampler, logits: Tensor, draws: int, seed: int = 1) -> list[Prediction]:
    generator = torch.Generator().manual_seed(seed)
    positions = np.arange(len(logits))
    return [sampler.predict(logits, positions, generator) for _ in range(draws)]


def _frequencies(sampler: Sampler, row: Tensor, draws: int = 20_000) -> NDArray[np.float64]:
    """How often each token is drawn, from many equal positions at once."""
    found = sampler.predict(row.expand(draws, -1), np.arange(draws), torch.Generator().manual_seed(2))
    counted: NDArray[np.float64] = np.bincount(found.tokens, minlength=len(row)) / draws
    return counted


@pytest.mark.parametrize("remasking", ["low_confidence", "maskgit_plus", "topk_margin", "entropy"])
def test_at_temperature_zero(remasking: Any) -> None:
    logits = _logits()
    found = Sampler(remasking).predict(logits, POSITIONS)
    assert found.positions is POSITIONS
    for number, row in enumerate(logits.double().numpy()):
        p = np.sort(_softmax(row))[::-1]
        entropy = -sum(x * math.log(x) for x in p)
        confidence = {"topk_margin": p[0] - p[1], "entropy": -entropy}.get(remasking, p[0])
        assert found.tokens[number] == row.argmax()
        assert found.confidence[number] == pytest.approx(confidence, abs=1e-6)
        assert found.entropy[number] == pytest.approx(entropy, abs=1e-6)
        assert found.gap[number] == pytest.approx(np.sort(row)[-1] - np.sort(row)[-2], abs=1e-6)


def test_gumbel_max_of_llada() -> None:
    """argmax of exp(logit) / (-ln u) ** temperature in float64; confidence without temperature."""
    logits, temperature = _logits(), 0.7
    found = Sampler(temperature=temperature).predict(logits, POSITIONS, torch.Generator().manual_seed(5))
    u = torch.rand(logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    wanted = (np.exp(logits.double().numpy()) / (-np.log(u)) ** temperature).argmax(-1)
    assert found.tokens.tolist() == wanted.tolist()
    assert wanted.tolist() != logits.argmax(-1).tolist()  # else the noise is not tested
    for number, row in enumerate(logits.double().numpy()):
        assert found.confidence[number] == pytest.approx(_softmax(row)[wanted[number]], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_of_lladas_tokens(temperature: float) -> None:
    # Gumbel-max with the noise to the power of the temperature draws from softmax(logits / temperature).
    row = _logits(1)[0]
    wanted = _softmax(row.double().numpy() / temperature)
    assert np.abs(_frequencies(Sampler(temperature=temperature), row) - wanted).max() < 0.012


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(0.5, None, None), (1.5, None, None), (1.0, 0.8, None), (1.0, 0.2, None), (1.0, None, 3), (2.0, 0.9, 4)],
)
def test_frequencies_of_dreams_tokens(temperature: float, top_p: float | None, top_k: int | None) -> None:
    row = _logits(1, seed=3)[0]
    wanted = _dream_probabilities(row.double().numpy(), temperature, top_p, top_k)
    found = _frequencies(Sampler("maskgit_plus", temperature, top_p, top_k), row)
    assert np.abs(found - wanted).max() < 0.012
    assert (found[wanted == 0] == 0).all()
    assert (wanted == 0).any() == (top_p is not None or top_k is not None)


@pytest.mark.parametrize("remasking", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(0.8, None, None), (1.3, 0.7, None), (0.0, 0.7, 3)])
def test_confidences_of_dream_are_of_the_shaped_distribution(
    remasking: Any, temperature: float, top_p: float | None, top_k: int | None
) -> None:
    logits = _logits(seed=4)
    sampler = Sampler(remasking, temperature, top_p, top_k)
    found = sampler.predict(logits, POSITIONS, torch.Generator().manual_seed(1))
    for number, row in enumerate(logits.double().numpy()):
        p = _dream_probabilities(row, temperature, top_p, top_k)
        best = np.sort(p)[::-1]
        entropy = -sum(x * math.log(x) for x in p if x)
        confidence = {"topk_margin": best[0] - best[1], "entropy": -entropy}.get(remasking, p[found.tokens[number]])
        assert found.confidence[number] == pytest.approx(confidence, abs=1e-6)


def test_positions_drawn_by_confidence() -> None:
    # Without replacement from softmax(confidence / alg_temp): the first position, and the second given the first.
    logits, alg_temp, draws = _logits(4, seed=6), 0.3, 20_000
    wanted = _softmax(Sampler("maskgit_plus").predict(logits, np.arange(4)).confidence / alg_temp)
    found = _sampled(Sampler("maskgit_plus", alg_temp=alg_temp), logits, draws)
    orders = np.argsort([-one.confidence for one in found], axis=-1)
    first = np.bincount(orders[:, 0], minlength=4) / draws
    assert np.abs(first - wanted).max() < 0.012
    best = int(wanted.argmax())
    second = np.bincount(orders[orders[:, 0] == best, 1], minlength=4) / (orders[:, 0] == best).sum()
    rest = np.where(np.arange(4) == best, 0, wanted)
    assert np.abs(second - rest / rest.sum()).max() < 0.02


def test_origin_draws_uniformly() -> None:
    found = np.concatenate([one.confidence for one in _sampled(Sampler("origin"), _logits(), 2000)])
    assert found.min() >= 0
    assert found.max() < 1
    assert np.abs(np.histogram(found, 10, (0, 1))[0] / len(found) - 0.1).max() < 0.01


def test_a_seed_decides_and_half_precision_does_not_matter() -> None:
    logits = _logits().bfloat16()
    for sampler in (Sampler(temperature=0.9), Sampler("entropy", 0.9, 0.9, alg_temp=0.5), Sampler("origin", 0.9)):
        one, other, third = (
            sampler.predict(kind, POSITIONS, torch.Generator().manual_seed(seed))
            for kind, seed in ((logits, 0), (logits.float(), 0), (logits, 1))
        )
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.confidence.tolist() == other.confidence.tolist()
        assert one.tokens.tolist() != third.tokens.tolist() or one.confidence.tolist() != third.confidence.tolist()


def test_the_part_of_a_prediction_that_is_about_some_positions() -> None:
    found = Sampler().predict(_logits(), POSITIONS)
    part = found.at(np.array([5, 12, 13]))
    assert part.positions.tolist() == [5, 12]
    for name in ("tokens", "confidence", "entropy", "gap"):
        assert getattr(part, name).tolist() == getattr(found, name)[[1, 4]].tolist()


def test_guidance() -> None:
    conditional, unconditional = _logits(), _logits(seed=9)
    # "un + (w + 1)(cond - un)": w = 0 is the conditional prediction, w = 1 as far again beyond it.
    assert torch.allclose(guided(conditional, unconditional, 0.0), conditional)
    assert torch.allclose(guided(conditional, unconditional, 1.0), 2 * conditional - unconditional)


def test_which_samplers_leave_nothing_to_chance() -> None:
    assert all(Sampler(name).is_deterministic for name in ("low_confidence", "random", "topk_margin"))
    assert not any(
        sampler.is_deterministic
        for sampler in (Sampler("origin"), Sampler(temperature=0.1), Sampler("entropy", alg_temp=1))
    )
    assert [Sampler(name).is_planned for name in ("random", "low_confidence")] == [True, False]
    assert [Sampler(name).of_dream for name in ("random", "low_confidence", "origin")] == [False, False, True]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"remasking": "confidence"}, "must be one of low_confidence, random, maskgit_plus"),
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"temperature": math.nan}, "temperature must be 0 or more"),
        ({"temperature": math.inf}, "temperature must be 0 or more"),
        ({"remasking": "entropy", "alg_temp": -1.0}, "alg_temp must be 0 or more"),
        ({"remasking": "entropy", "top_p": 0.0}, "top_p must be in"),
        ({"remasking": "entropy", "top_p": 1.1}, "top_p must be in"),
        ({"remasking": "entropy", "top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.9, "temperature": 1.0}, "give one of its remasking rules"),
        ({"top_k": 5}, "give one of its remasking rules"),
        ({"alg_temp": 0.5}, "give one of them"),
        ({"alg_temp": 0.5, "remasking": "random"}, "give one of them"),
        ({"alg_temp": 0.5, "remasking": "origin"}, "give one of them"),
    ],
)
def test_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Sampler(**options)
