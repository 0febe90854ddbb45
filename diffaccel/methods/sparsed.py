"""SparseD (Wang et al., ICLR 2026, arXiv 2509.24014): attention to a few key blocks, chosen once, early in the run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from diffaccel.dlm.decoding import Decoding
from diffaccel.methods.checks import check_whole, check_word

if TYPE_CHECKING:
    from diffaccel.dlm.sparse_attention import SparseRun

FORMS = ("paper", "released")
BACKENDS = ("auto", "gather", "sdpa", "flex")


@dataclass(frozen=True)
class SparseD:
    """Full attention for a share of the steps, then each block of queries attends to the key blocks it looked at most.

    Pays for long texts only: the paper is not faster below 16,384 positions.

    Attributes:
        rho: share of key blocks kept, of the prompt's and of the generated ones each.
        skip: share of the steps with full attention, at the beginning.
        block_size: positions of a block; 32 for short tasks and 128 for long ones in the paper.
        form: `"paper"`, or `"released"`, the selection and the count of full steps of the authors' code.
        backend: `"flex"`: compiled FlexAttention, which skips blocks. `"gather"`: copies of the kept blocks. `"sdpa"`:
            a mask, slower than full attention. `"auto"`: gather on CPUs; on CUDA flex from 2,048 positions on, else
            sdpa.

    Raises:
        ValueError: an unknown word or a number out of range.
    """

    rho: float = 0.5
    skip: float = 0.2
    block_size: int = 32
    form: Literal["paper", "released"] = "paper"
    backend: Literal["auto", "gather", "sdpa", "flex"] = "auto"
    is_for_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_word(self, form=FORMS, backend=BACKENDS)
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho is the share of blocks that is kept, above 0 and at most 1, got {self.rho}")
        if not 0 <= self.skip <= 1:
            raise ValueError(f"skip is the share of steps with full attention, from 0 to 1, got {self.skip}")
        check_whole(self, block_size=1)

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> SparseD:
        """The same for all pipelines."""
        return cls(**options)

    def run(self, steps: int, prompts: list[int], generated: int) -> SparseRun:
        """The state of one generation, for prompts of these lengths."""
        from diffaccel.dlm.sparse_attention import SparseRun

        return SparseRun(
            steps=steps,
            prompt=prompts,
            generated=[generated] * len(prompts),
            block_size=self.block_size,
            rho=self.rho,
            skip=self.skip,
            form=self.form,
            backend=self.backend,
        )

    def applied(self, to: Decoding) -> Decoding:
        """See `TextMethod`."""
        if to.conventions.block_causal is not None:
            raise ValueError(
                "sparsed needs a model whose positions all see each other; this one is causal between blocks"
            )
        return dataclasses.replace(to, sparse=self)
