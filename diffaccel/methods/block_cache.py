"""The cache that block diffusion allows: finished blocks are kept for good, and nothing is lost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from diffaccel.dlm.decoding import Decoding
from diffaccel.dlm.steady import Finished


@dataclass(frozen=True)
class BlockCache:
    """Keep keys and values of finished blocks, compute the rows of the current one.

    For models whose attention is causal between blocks (BD3-LM, arXiv 2503.09573; LLaDA2, SDAR): exact.
    """

    is_for_text: ClassVar[bool] = True

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> BlockCache:
        """The same for all pipelines."""
        return cls(**options)

    def applied(self, to: Decoding) -> Decoding:
        """See `TextMethod`."""
        if to.conventions.block_causal is None:
            raise ValueError(
                "block_cache needs a model whose attention is causal between blocks (TextDiffusionPipeline's "
                "block_causal): in this one, finished blocks still see what follows. Use method='dkv' or 'fast_dllm'"
            )
        return dataclasses.replace(to, policy=Finished(to.conventions.block_causal))
