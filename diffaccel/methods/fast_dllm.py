"""Fast-dLLM (Wu et al., arXiv 2505.22618): caches fixed at a block's start, and all positions that are sure at once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from diffaccel.dlm.decoding import Decoding
from diffaccel.dlm.policies import Dual, Prefix
from diffaccel.methods.checks import check_full_above

CACHES = ("prefix", "dual")


@dataclass(frozen=True)
class FastDllm:
    """All rows at the first step of a block, then those that are left; and as many positions a step as are sure.

    Attributes:
        cache: `"prefix"`: rows from the block on are computed at each step. `"dual"`: those of the block. None: all.
        threshold: decode all positions that are this sure, at least one a step.
        factor: decode by rank instead: rank r passes at confidence 1 - factor / (r + 1).
        full_above: as for `Dkv`.

    Raises:
        ValueError: an unknown cache, both rules at once, or nothing asked for.
    """

    cache: Literal["prefix", "dual"] | None = "dual"
    threshold: float | None = 0.9
    factor: float | None = None
    full_above: float = 0.9
    is_for_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.cache is not None and self.cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)} or None, got {self.cache!r}")
        if self.threshold is not None and self.factor is not None:
            raise ValueError("give threshold or factor, not both: FastDllm(threshold=None, factor=1.0)")
        if self.cache is None and self.threshold is None and self.factor is None:
            raise ValueError("FastDllm without a cache, a threshold or a factor accelerates nothing: give one of them")
        check_full_above(self)

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> FastDllm:
        """The same for all pipelines; a factor replaces the threshold."""
        if options.get("factor") is not None:
            options.setdefault("threshold", None)
        return cls(**options)

    def applied(self, to: Decoding) -> Decoding:
        """See `TextMethod`."""
        if self.cache is not None and to.conventions.block_causal is not None:
            raise ValueError("this model's attention is causal between blocks: use method='block_cache' for its cache")
        if self.threshold is not None or self.factor is not None:
            rule = dataclasses.replace(to.rule, threshold=self.threshold, factor=self.factor, entropy_bound=None)
            to = dataclasses.replace(to, rule=rule)
        if self.cache is None:
            return to
        policy = Prefix() if self.cache == "prefix" else Dual()
        return dataclasses.replace(to, policy=policy, full_above=self.full_above)
