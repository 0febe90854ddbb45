"""What is compared on diffusion language models: methods, and plain runs of fewer steps.

A line in a list below is all it takes to add to the comparison: a method with its options as `accelerate_pipeline`
takes them, and arguments of the call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from diffaccel import accelerate_pipeline
from diffaccel.dlm.decoding import Decoding
from diffaccel.dlm.policies import View
from diffaccel.dlm.shift import Flags
from diffaccel.pipelines.text import TextDiffusionPipeline

RANDOM = {"remasking": "random"}
"""Order of positions drawn at the start, which is what Greedy needs."""


@dataclass(frozen=True)
class WithoutDelay:
    """What dKV-Cache argues against: a token is reused from the very next step on, as it was computed when masked."""

    refresh: int = 8
    is_for_text: ClassVar[bool] = True
    needs_order: ClassVar[bool] = False

    def reused(self, view: View) -> Flags:
        """As a row policy."""
        return np.zeros_like(view.known) if view.index % self.refresh == 0 else view.known.copy()

    def applied(self, to: Decoding) -> Decoding:
        """As a method."""
        return dataclasses.replace(to, policy=self)


@dataclass(frozen=True)
class Cell:
    """One way to decode.

    Attributes:
        method: of diffaccel, by name, or "without_delay"; None for a plain run.
        options: of the method.
        share: of the full run's steps.
        call: more arguments of the call.
    """

    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float = 1.0
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as `dkv refresh=8, 50% of the steps`."""
        words = [self.method or "plain", *(f"{key}={value}" for key, value in self.options.items())]
        words += [f"{key}={value}" for key, value in self.call.items()]
        return " ".join(words) + (f", {self.share:.0%} of the steps" if self.share < 1 else "")

    @property
    def reference(self) -> Cell:
        """The full plain run it is compared with."""
        return Cell(call=self.call)

    @contextmanager
    def attached(self, pipe: TextDiffusionPipeline) -> Iterator[TextDiffusionPipeline]:
        """The pipeline accelerated as the cell says."""
        if self.method is None:
            yield pipe
            return
        if self.method == "without_delay":
            accelerate_pipeline(pipe, WithoutDelay(**self.options))
        else:
            accelerate_pipeline(pipe, self.method, **self.options)
        with pipe.acceleration:
            yield pipe

    def arguments(self, tokens: int, blocks: int = 1) -> dict[str, Any]:
        """Arguments of a call that writes so many tokens in so many blocks, one a step in the full run."""
        steps = blocks * max(1, round(self.share * tokens / blocks))
        return {"gen_length": tokens, "num_inference_steps": steps, **self.call}


FEWER = [Cell(share=share) for share in (1.0, 0.5, 0.25, 0.2)]
DECODE = [Cell("dkv", {"refresh": refresh}) for refresh in (2, 4, 8, 16)]
DKV = [
    *DECODE,
    Cell("dkv", {"refresh": 8, "form": "paper"}),
    Cell("dkv", {"refresh": 8}, share=0.5),
    *(Cell("dkv", {"variant": "interval", "refresh": refresh}) for refresh in (4, 8, 16)),
    Cell("dkv", {"variant": "prefill"}),
    Cell("dkv", {"variant": "pd", "refresh": 4}),
    *(Cell("without_delay", {"refresh": refresh}) for refresh in (4, 8, 16)),
]
GREEDY = [
    Cell(call=RANDOM),
    Cell(share=0.5, call=RANDOM),
    *(Cell("dkv", {"variant": "greedy", "refresh": 2, "window": window}, call=RANDOM) for window in (0, 4)),
    Cell("dkv", {"variant": "greedy", "refresh": 2, "window": 4, "center": "previous"}, call=RANDOM),
    Cell("dkv", {"variant": "greedy", "refresh": 4, "window": 4}, call=RANDOM),
]
FAST_DLLM = [
    Cell("fast_dllm", {"cache": None, "threshold": 0.9}),
    Cell("fast_dllm", {"cache": None, "factor": 1.0}),
    Cell("fast_dllm", {"cache": "prefix", "threshold": None}),
    Cell("fast_dllm", {"cache": "dual", "threshold": None}),
    Cell("fast_dllm", {"cache": "dual", "threshold": 0.9}),
]


def sparsed(block_size: int) -> list[Cell]:
    """SparseD in both forms."""
    return [
        *(Cell("sparsed", {"rho": rho, "block_size": block_size}) for rho in (0.3, 0.5, 0.7)),
        Cell("sparsed", {"rho": 0.5, "block_size": block_size, "form": "released"}),
        Cell("sparsed", {"rho": 0.5, "block_size": block_size, "skip": 0.5}),
    ]
