"""From logits to one token a position, and to how sure of it the model is."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Remasking = Literal["low_confidence", "random", "maskgit_plus", "topk_margin", "entropy", "origin"]
LLADA: tuple[str, ...] = ("low_confidence", "random")
DREAM: tuple[str, ...] = ("maskgit_plus", "topk_margin", "entropy", "origin")
_RANKED = DREAM[:-1]  # "origin" knows no confidence


@dataclass(frozen=True)
class Prediction:
    """What one forward says of some positions of one sequence.

    Attributes:
        positions: (m,) the positions.
        tokens: (m,) the tokens chosen.
        confidence: (m,) by which the next positions are chosen, the higher the earlier.
        entropy: (m,) of the model's distribution, in nats.
        gap: (m,) between the two highest logits: how little would change the token.
    """

    positions: NDArray[np.intp]
    tokens: NDArray[np.int64]
    confidence: NDArray[np.float64]
    entropy: NDArray[np.float64]
    gap: NDArray[np.float64]

    def at(self, positions: NDArray[np.intp]) -> Prediction:
        """The part of it that is about some of its positions."""
        part = np.isin(self.positions, positions)
        return Prediction(*(getattr(self, field.name)[part] for field in dataclasses.fields(self)))


@dataclass(frozen=True)
class Sampler:
    """How tokens are drawn and positions ranked.

    Attributes:
        remasking: `"low_confidence"` (probability of the token without temperature) or `"random"`, as LLaDA;
            `"maskgit_plus"` (probability of the token), `"topk_margin"` (of the two likeliest), `"entropy"` (negative)
            or `"origin"` (random), as Dream.
        temperature: 0 takes the likeliest token.
        top_p, top_k: as everywhere, of Dream's rules; at temperature 0 they only change confidences.
        alg_temp: above 0, positions are drawn by their confidence instead of taken in its order (Dream).

    Raises:
        ValueError: an unknown rule, a negative temperature, or shares that are none.
    """

    remasking: Remasking = "low_confidence"
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    alg_temp: float = 0.0

    def __post_init__(self) -> None:
        if self.remasking not in LLADA + DREAM:
            raise ValueError(f"remasking must be one of {', '.join(LLADA + DREAM)}, got {self.remasking!r}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if not (self.alg_temp >= 0 and math.isfinite(self.alg_temp)):
            raise ValueError(f"alg_temp must be 0 or more, got {self.alg_temp}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if (self.top_p is not None or self.top_k is not None) and not self.of_dream:
            raise ValueError(
                "top_p and top_k shape Dream's sampling: give one of its remasking rules "
                f"({', '.join(DREAM)}), or leave them out"
            )
        if self.alg_temp and self.remasking not in _RANKED:
            raise ValueError(
                f"alg_temp draws positions by the confidence of Dream's rules {', '.join(_RANKED)}: give one of them "
                f"(remasking is {self.remasking!r}), or leave it out"
            )

    @property
    def of_dream(self) -> bool:
        """Whether tokens are drawn and counted as Dream does."""
        return self.remasking in DREAM

    @property
    def is_planned(self) -> bool:
        """Whether positions are decoded in a random order that can be drawn in advance."""
        return self.remasking == "random"

    @property
    def is_deterministic(self) -> bool:
        """Whether a forward alone decides what follows from it, given the order of positions."""
        return not self.temperature and not self.alg_temp and self.remasking != "origin"

    def predict(
        self, logits: Tensor, positions: NDArray[np.intp], generator: torch.Generator | None = None
    ) -> Prediction:
        """Tokens and confidences from logits (m, vocabulary) of positions (m,); `generator` (on the CPU) draws."""
        logits = logits.float()
        probabilities = logits.softmax(-1)
        entropy = torch.special.entr(probabilities).sum(-1)
        best = logits.topk(2, dim=-1).values
        if self.of_dream:
            probabilities = self._shaped(logits).softmax(-1)
        if not self.temperature:
            tokens = logits.argmax(-1)
        elif self.of_dream:
            tokens = torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(logits.device)
        else:
            tokens = _gumbel_max(logits, self.temperature, generator)
        confidence = self._confidence(probabilities, tokens, generator)
        moved = [tensor.double().cpu().numpy() for tensor in (confidence, entropy, best[:, 0] - best[:, 1])]
        return Prediction(positions, tokens.cpu().numpy(), *moved)

    def _confidence(self, probabilities: Tensor, tokens: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.remasking == "topk_margin":
            first, second = probabilities.topk(2, dim=-1).values.unbind(-1)
            confidence = first - second
        elif self.remasking == "entropy":
            confidence = -torch.special.entr(probabilities).sum(-1)
        elif self.remasking == "origin":
            return torch.rand(len(tokens), generator=generator, dtype=torch.float64)
        else:
            confidence = probabilities.gather(-1, tokens[:, None])[:, 0]
        if not self.alg_temp:
            return confidence
        # "multinomial(softmax(full_confidence / alg_temp), number_transfer_tokens)" without replacement: the positions
        # with the largest sums of exponent and Gumbel noise.
        u = torch.rand(len(tokens), generator=generator, dtype=torch.float64).to(confidence.device)
        return confidence.double() / self.alg_temp - (-u.log()).log()

    def _shaped(self, logits: Tensor) -> Tensor:
        """Logits over the temperature, unlikely tokens struck out."""
        logits = logits / (self.temperature or 1)
        if self.top_p is not None:
            ordered, order = logits.sort(-1, descending=True)
            passed = ordered.softmax(-1).cumsum(-1) > self.top_p
            # The token that crosses the border stays.
            struck = torch.cat([torch.zeros_like(passed[:, :1]), passed[:, :-1]], -1)
            logits = logits.masked_fill(torch.zeros_like(struck).scatter(-1, order, struck), -torch.inf)
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        return logits


def _gumbel_max(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    # "argmax of exp(logit) / (-ln u)^temperature" (LLaDA, generate.py), in logarithms; float64 as there.
    u = torch.rand(logits.shape, generator=generator, dtype=torch.float64).to(logits.device)
    return (logits.double() - temperature * (-u.log()).log()).argmax(-1)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (LLaDA, arXiv:2502.09992, appendix): away from what the prompt-less input says."""
    return unconditional + (scale + 1) * (conditional - unconditional)
