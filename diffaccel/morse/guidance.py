"""Which estimate Dot corrects: that of each branch of guidance, or the guided one, once.

In the second case the kept estimate is z = u + w (c - u), and a Dot step returns the corrected one in both halves of
the batch: u + w (c - u) then gives it back for every w. It costs half as much. What a pipeline does to the branches
beside, such as `guidance_rescale`, has no effect at a Dot step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffaccel.morse.probe import Call, of_branch


@dataclass(frozen=True)
class Guidance:
    """What Dot is asked, and what is made of its answer.

    Attributes:
        scale: the guidance scale w, where Dot corrects the guided estimate; None where it corrects each branch.
    """

    scale: float | None

    def check(self, pipe: Any) -> None:
        """Raise ValueError if the run of a pipeline that begins has another scale, or none that can be told."""
        found = getattr(pipe, "guidance_scale", None)
        if self.scale is None or found == self.scale:
            return
        if not isinstance(found, int | float):
            raise ValueError(
                f"guided= is for pipelines of Stable Diffusion's kind, and {type(pipe).__name__} does not tell its "
                "guidance_scale: leave it out, and take a Dot that was not trained guided"
            )
        raise ValueError(
            f"guided={self.scale:g}, but this run has guidance_scale={found:g}: call the pipeline with "
            f"guidance_scale={self.scale:g}, or accelerate it with guided={found:g}"
        )

    def asked(self, call: Call) -> Call:
        """What Dot is asked: the call, or its conditional half."""
        return call if self.scale is None else of_branch(call, 1, len(call.sample) // 2)

    def combined(self, z: Tensor) -> Tensor:
        """The estimate Dot is to correct [B, ...], of a whole call's."""
        if self.scale is None:
            return z
        uncond, cond = z.chunk(2)
        return uncond + self.scale * (cond - uncond)

    def returned(self, z: Tensor) -> Tensor:
        """What the call returns for the corrected estimate."""
        return z if self.scale is None else torch.cat([z, z])

    def holds(self, call: Call) -> bool:
        """Whether the halves of a call's batch are the two branches: of one sample, then."""
        x = call.sample
        return self.scale is None or (len(x) % 2 == 0 and torch.equal(*x.chunk(2)))
