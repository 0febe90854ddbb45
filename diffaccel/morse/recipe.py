"""Settings of a Dot's training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PAIRS = ("uniform", "plan", "on-policy")
NORMS = ("none", "per_gap", "per_bin")
PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class DotRecipe:
    """Settings of one training. The paper states none of the optimizer's.

    Attributes:
        plans: Dash and Dot steps of the runs to train for.
        pairs: where pairs come from, see `diffaccel.morse.sources`.
        loss_norm: "none", squared errors as they are (the paper), "per_gap", relative to the change in their gap, or
            "per_bin", to that in their gap at their time of arrival, see `diffaccel.morse.power`.
        guidance: range of guidance scales; None is the pipeline's own. The paper has 2 to 10 for Stable Diffusion.
        iterations: steps of the optimizer.
        batch: pictures a step; with guidance a step sees both branches of each.
        learning_rate: peak of AdamW's.
        weight_decay: AdamW's.
        warmup: steps over which the rate rises.
        decay: share of the steps, at the end, over which it falls linearly to 0.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights, which is what is kept.
        mixed_precision: "no", "fp16" or "bf16"; the loss is in float32.
        seed: of everything random.
        checkpoint_every: steps between checkpoints.

    Raises:
        ValueError: a setting out of range.
    """

    plans: tuple[tuple[int, int], ...] = ((2, 4), (3, 6), (4, 8))
    pairs: str = "uniform"
    loss_norm: str = "none"
    guidance: tuple[float, float] | None = None
    iterations: int = 100_000
    batch: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 100
    decay: float = 0.5
    clip: float = 1.0
    ema: float = 0.9999
    mixed_precision: str = "no"
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name, words in (("pairs", PAIRS), ("loss_norm", NORMS), ("mixed_precision", PRECISIONS)):
            if getattr(self, name) not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}")
        for name in ("iterations", "batch", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
        if not isinstance(self.warmup, int) or self.warmup < 0 or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"warmup and seed must be whole numbers from 0, got {self.warmup!r} and {self.seed!r}")
        if self.learning_rate <= 0 or self.clip <= 0 or self.weight_decay < 0:
            raise ValueError("learning_rate and clip must be positive, and weight_decay 0 or more")
        if not 0 <= self.ema < 1 or not 0 <= self.decay <= 1:
            raise ValueError(
                f"ema must be from 0 to below 1 and decay from 0 to 1, got {self.ema!r} and {self.decay!r}"
            )
        if not self.plans or any(len(plan) != 2 or plan[0] < 1 or plan[1] < 1 for plan in self.plans):
            raise ValueError(f"plans are pairs of Dash and Dot steps, 1 or more each, got {self.plans!r}")
        if self.guidance is not None and not 1 < self.guidance[0] <= self.guidance[1]:
            raise ValueError(f"guidance is a range of scales above 1, such as (2, 10), got {self.guidance!r}")

    def rate(self, iteration: int) -> float:
        """Share of the peak learning rate at an iteration: short rise, flat, linear fall to 0."""
        rise = (iteration + 1) / (self.warmup + 1)
        fall = (self.iterations - iteration) / max(1.0, self.decay * self.iterations)
        return max(0.0, min(1.0, rise, fall))

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)
