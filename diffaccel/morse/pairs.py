"""What Dot learns from: where it is asked, what it is told, and what Dash says there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """A batch of pairs of a Dash step s and a later time of the same trajectory. No tensor has a gradient.

    Attributes:
        x: sample where Dot is asked, as the network would be given it [B, ...].
        t: time there, as the network would be given it [B].
        x_s: sample at the Dash step.
        k_s: what is kept of the Dash step's estimate, see `diffaccel.morse.coordinates`.
        t_s: time of the Dash step [B].
        base: what a Dot of zero would keep, shaped like `k_s`; it is `k_s` itself in the paper.
        k: what Dash says at (x, t).
        conditioning: Dash's other arguments by name.
    """

    x: Tensor
    t: Tensor
    x_s: Tensor
    k_s: Tensor
    t_s: Tensor
    base: Tensor
    k: Tensor
    conditioning: dict[str, Any]
