"""How many of the masked positions a step decodes, and by how little it decided so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffaccel.dlm import decode

if TYPE_CHECKING:
    from diffaccel.dlm.scores import Prediction, Sampler

_CHANCE = ("random", "origin")


@dataclass(frozen=True)
class Rule:
    """How many of the masked positions a step decodes.

    Attributes:
        counts: `"llada"` (equal shares) or `"dream"` (by its noise schedule).
        threshold: decode all that are this sure instead, and the surest if none is (Fast-dLLM).
        factor: decode in order of confidence while rank r has 1 - factor / (r + 1) of it instead (Fast-dLLM).
        entropy_bound: decode in order of entropy while the entropies before sum to no more instead.
        quota: with a threshold: at least the step's share (LLaDA2), not at least one.

    Raises:
        ValueError: more than one of the three, or one out of its range.
    """

    counts: str = "llada"
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    quota: bool = False

    def __post_init__(self) -> None:
        given = self._given
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}: they are different rules for the same decision")
        for name, value in given.items():
            if not 0 <= value < float("inf") or (name == "threshold" and value > 1):
                raise ValueError(f"{name} must be {'in 0..1' if name == 'threshold' else '0 or more'}, got {value}")

    @property
    def _given(self) -> dict[str, float]:
        given = {"threshold": self.threshold, "factor": self.factor, "entropy_bound": self.entropy_bound}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def is_parallel(self) -> bool:
        """Whether confidence decides how many positions a step decodes."""
        return bool(self._given)

    def check(self, sampler: Sampler) -> None:
        """Refuse a way to rank positions from which this rule cannot tell how many are sure.

        Raises:
            ValueError: says which rules go with which.
        """
        if not self.is_parallel:
            return
        (name,) = self._given
        if sampler.alg_temp:
            raise ValueError(f"alg_temp draws positions, {name} chooses them: leave one of them out")
        if sampler.remasking in _CHANCE or (sampler.remasking == "entropy" and self.entropy_bound is None):
            right = "low_confidence, maskgit_plus or topk_margin"
            raise ValueError(
                f"{name} chooses positions by how sure the model is, which remasking={sampler.remasking!r} does not "
                f"measure on that scale: use {right}{'' if self.entropy_bound is None else ' or entropy'}"
            )

    def choose(self, prediction: Prediction, count: int) -> NDArray[np.intp]:
        """Indices into a prediction: what this step decodes, where its share would be `count`."""
        if self.threshold is not None:
            sure = decode.by_threshold(prediction.confidence, self.threshold)
            few = self.quota and len(sure) < count
            return decode.most_confident(prediction.confidence, count) if few else sure
        if self.factor is not None:
            return decode.by_factor(prediction.confidence, self.factor)
        if self.entropy_bound is not None:
            return decode.by_entropy_bound(prediction.entropy, self.entropy_bound)
        return decode.most_confident(prediction.confidence, count)

    def margin(self, prediction: Prediction, count: int) -> float:
        """The least change of a confidence (an entropy, with a bound on entropies) by which `choose` could differ."""
        chosen = np.zeros(len(prediction.positions), dtype=bool)
        chosen[self.choose(prediction, count)] = True
        scores = -prediction.entropy if self.entropy_bound is not None else prediction.confidence
        least = float("inf")
        if chosen.any() and not chosen.all():
            least = float(scores[chosen].min() - scores[~chosen].max())
        return min(least, self._to_border(prediction))

    def _to_border(self, prediction: Prediction) -> float:
        """How near a position comes to what the rule asks of it."""
        ranked = np.sort(prediction.confidence)[::-1]
        ranks = np.arange(1, len(ranked) + 1)
        if self.threshold is not None:
            distances = ranked - self.threshold
        elif self.factor is not None:
            distances = (ranked - 1 + self.factor / (ranks + 1))[1:]  # the first passes in any case
        elif self.entropy_bound is not None:
            distances = np.cumsum(np.sort(prediction.entropy))[:-1] - self.entropy_bound
        else:
            return float("inf")
        return float(np.abs(distances).min(initial=np.inf))
