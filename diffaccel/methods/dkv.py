"""dKV-Cache (Ma et al., NeurIPS 2025, arXiv 2505.15781): keys and values of decoded tokens, reused one step late."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from diffaccel.dlm.decoding import Decoding
from diffaccel.dlm.policies import Decode, Greedy, Policy, Prefill, PromptDecode
from diffaccel.dlm.shift import SHIFTS, Shift
from diffaccel.dlm.steady import Interval
from diffaccel.methods.checks import check_full_above, check_word, nearest

VARIANTS = ("decode", "greedy", "prefill", "pd", "interval")


@dataclass(frozen=True)
class Dkv:
    """Compute only the rows whose keys and values still move, keep those of all others.

    Attributes:
        variant: `"decode"`: decoded tokens are reused from the second step after their decoding on. `"greedy"`: only
            what is decoded now and was last, and a window; for a random order. `"prefill"`: the prompt. `"pd"`: the
            prompt for good, decoded tokens as in `"decode"`. `"interval"`, our own: what was known at the last refresh.
        refresh: R, every R-th step of a block computes all rows (`"pd"`: all but the prompt's). By default 8, greedy 2,
            pd 4, as in the paper.
        window: of `"greedy"`: masked neighbours computed around each position.
        center: of `"greedy"`: the window lies around what is decoded `"next"` (released code) or was
            `"previous"` (paper).
        form: of `"decode"`: `"released"` computes the second step of each block, too; `"paper"` does not.
        shift: for models whose row p - 1 predicts position p: reuse row p when token p + 1 is known (`"un"`), token p
            (`"right"`: some positions wait for their row's next refresh; far worse in the paper), or both
            (`"un_right"`).
        full_above: a step that would compute more than this share of the rows computes all of them, since picking rows
            costs more than it saves; 1 never does.

    Raises:
        ValueError: an unknown word or a number out of range.
    """

    variant: Literal["decode", "greedy", "prefill", "pd", "interval"] = "decode"
    refresh: int | None = None
    window: int = 4
    center: Literal["next", "previous"] = "next"
    form: Literal["released", "paper"] = "released"
    shift: Shift = "un_right"
    full_above: float = 0.9
    is_for_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(
                f"unknown variant {self.variant!r}{nearest(self.variant, VARIANTS)} Variants: {', '.join(VARIANTS)}."
            )
        check_word(self, shift=SHIFTS)
        check_full_above(self)
        self.policy()

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> Dkv:
        """The same for all pipelines."""
        return cls(**options)

    def policy(self) -> Policy:
        """The row policy of this variant."""
        if self.variant == "prefill":
            return Prefill()
        if self.variant == "greedy":
            return Greedy(self._refresh(2), self.window, self.center)
        if self.variant == "pd":
            return PromptDecode(self._refresh(4))
        if self.variant == "interval":
            return Interval(self._refresh(8))
        return Decode(self._refresh(8), self.form)

    def applied(self, to: Decoding) -> Decoding:
        """See `TextMethod`."""
        policy = self.policy()
        if policy.needs_order and not to.sampler.is_planned:
            raise ValueError(
                f"variant='greedy' computes what is decoded next only, so the order must be known in advance: call the "
                f"pipeline with remasking='random' (it is {to.sampler.remasking!r}), or use variant='decode'"
            )
        if policy.needs_order and to.rule.is_parallel:
            raise ValueError(
                "variant='greedy' cannot let confidence decide how many positions a step decodes: leave "
                "out threshold, factor and entropy_bound, or use variant='decode'"
            )
        if policy.needs_order and to.conventions.shift:
            raise ValueError("variant='greedy' exists for models whose row p predicts position p; use variant='decode'")
        if to.conventions.block_causal is not None:
            raise ValueError(
                "this model's attention is causal between blocks, so finished blocks can be kept for good and exactly: "
                "use method='block_cache'"
            )
        return dataclasses.replace(to, policy=policy, shift=self.shift, full_above=self.full_above)

    def _refresh(self, default: int) -> int:
        return default if self.refresh is None else self.refresh
