"""How a run decodes: the pipeline says it for the plain run, a method changes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from diffaccel.dlm.conventions import Conventions
from diffaccel.dlm.policies import Policy
from diffaccel.dlm.rule import Rule
from diffaccel.dlm.sequence import Course, stepwise
from diffaccel.dlm.shift import Shift
from diffaccel.dlm.ssd import Speculation, speculative
from diffaccel.dlm.state import Decoder

if TYPE_CHECKING:
    from diffaccel.dlm.scores import Sampler
    from diffaccel.methods.sparsed import SparseD


@dataclass(frozen=True)
class Decoding:
    """Everything that decides a run but the network, the prompts and the seeds.

    Attributes:
        conventions: of the model.
        generated: positions to fill.
        steps: of the run, T.
        block_length: of semi-autoregressive blocks; None for one block.
        sampler: makes tokens and confidences of logits.
        rule: how many positions a step decodes.
        scale: of classifier-free guidance; 0 for none.
        stop_at_end: leave out the blocks after one that ends the text.
        policy: which stored rows serve a step; None computes all and stores none.
        shift: how reuse is shifted where row p - 1 predicts position p.
        full_above: a step that would compute more than this share of the rows computes all.
        draft: nodes beyond the certain one in self-speculative decoding; None decodes step by step.
        one_by_one: check the nodes of a draft one after the other.
        sparse: sparse attention, with its settings.
    """

    conventions: Conventions
    generated: int
    steps: int
    block_length: int | None
    sampler: Sampler
    rule: Rule = field(default_factory=Rule)
    scale: float = 0.0
    stop_at_end: bool = True
    policy: Policy | None = None
    shift: Shift = "un_right"
    full_above: float = 1.0
    draft: int | None = None
    one_by_one: bool = False
    sparse: SparseD | None = None

    @property
    def lanes(self) -> int:
        """Forwards a sequence may want at a time."""
        return 1 if self.draft is None or (self.one_by_one and self.policy is None) else self.draft + 1

    def course(self, prompt: NDArray[np.int64], seed: int) -> Course:
        """The course of one sequence, from its prompt (P,).

        Raises:
            ValueError: lengths or steps that do not fit each other.
        """
        return Course(
            prompt,
            self.generated,
            self.steps,
            self.block_length,
            self.conventions,
            self.sampler,
            self.rule,
            self.policy,
            self.shift,
            self.full_above,
            self.stop_at_end,
            np.random.default_rng(seed),
        )

    def decoder(self, course: Course, log: Speculation) -> Decoder:
        """What decodes a sequence along its course."""
        if self.draft is None:
            return stepwise(course)
        return speculative(course, self.draft, log, self.one_by_one)


@runtime_checkable
class TextMethod(Protocol):
    """A method for diffusion language models: a frozen dataclass that changes how a run decodes."""

    is_for_text: ClassVar[bool]

    def applied(self, to: Decoding) -> Decoding:
        """The accelerated run.

        Raises:
            ValueError: the method cannot accelerate this run; says why and what to change.
        """
