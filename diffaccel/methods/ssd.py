"""Self-speculative decoding (SSD, arXiv 2510.04147): the text of step-wise decoding in fewer forwards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from diffaccel.dlm.decoding import Decoding, TextMethod
from diffaccel.dlm.policies import Policy
from diffaccel.dlm.steady import STEADY, Finished
from diffaccel.methods.block_cache import BlockCache
from diffaccel.methods.checks import check_whole
from diffaccel.methods.dkv import Dkv
from diffaccel.methods.fast_dllm import FastDllm
from diffaccel.methods.sparsed import SparseD

CACHES: dict[str, TextMethod] = {
    "interval": Dkv("interval"),
    "dkv": Dkv("interval"),
    "prefill": Dkv("prefill"),
    "prefix": FastDllm("prefix", threshold=None),
    "dual": FastDllm("dual", threshold=None),
    "block_cache": BlockCache(),
}


@dataclass(frozen=True)
class Ssd:
    """Draft several steps from one forward, check them in one batch, keep what holds.

    Attributes:
        draft: N, steps drafted beyond the one that is certain; a forward holds up to N + 1 texts.
        cache: a cache under it: `"interval"` (or `"dkv"`), `"prefill"`, `"prefix"`, `"dual"`, or a method such as
            `Dkv("interval", refresh=4)`. The text is then that of step-wise decoding with the same cache.
        one_by_one: check one text after the other, for comparisons; saves no time.

    Raises:
        ValueError: no draft, or a cache that changes from step to step, against which nothing can be drafted.
    """

    draft: int = 4
    cache: str | Any | None = None
    one_by_one: bool = False
    is_for_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_whole(self, draft=1)
        if isinstance(self.cache, str) and self.cache not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, a method or None, got {self.cache!r}")
        if isinstance(self.cache, Ssd | SparseD) or not (self.cache is None or isinstance(self._cache(), TextMethod)):
            raise ValueError(
                f"cache must be one of {', '.join(CACHES)}, a method with a cache such as Dkv('interval'), or None, "
                f"got {self.cache}"
            )

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> Ssd:
        """The same for all pipelines."""
        return cls(**options)

    def applied(self, to: Decoding) -> Decoding:
        """See `TextMethod`."""
        if not to.sampler.is_deterministic:
            raise ValueError(
                "ssd checks whether a draft is what step-wise decoding would have decided, which chance does not "
                "allow: call the pipeline with temperature=0, alg_temp=0 and a remasking other than 'origin'"
            )
        under = self._cache()
        if under is not None:
            to = under.applied(to)
            _check(to.policy, under)
        return dataclasses.replace(to, draft=self.draft, one_by_one=self.one_by_one)

    def _cache(self) -> TextMethod | None:
        if isinstance(self.cache, str):
            return CACHES[self.cache]
        found: TextMethod | None = self.cache
        return found


def _check(policy: Policy | None, method: TextMethod) -> None:
    if policy is not None and not isinstance(policy, (*STEADY, Finished)):
        raise ValueError(
            f"ssd tries several steps against one state of the cache, and {method} changes it at every step, so no "
            "draft could be longer than one: use cache='interval', 'prefill', 'prefix' or 'dual'"
        )
