"""What a masked diffusion language model expects of whoever decodes with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conventions:
    """What a masked diffusion language model expects of a decoding loop.

    Attributes:
        mask_token_id: the token of a position that is not decoded yet.
        eos_token_id: the token that ends a text; None if there is none.
        shift: row p - 1 predicts position p (Dream, DiffuCoder, models that were autoregressive), not row p.
        block_causal: length of the blocks between which attention is causal, on a grid from position 0 (SDAR, LLaDA2,
            BD3-LM); None where all positions see each other (LLaDA, Dream).
    """

    mask_token_id: int
    eos_token_id: int | None = None
    shift: bool = False
    block_causal: int | None = None
