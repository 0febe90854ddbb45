"""What one call of each branch costs, in multiplications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from diffaccel.branches import Layer
from diffaccel.patch import Patch


def branch_macs(layers: Sequence[Layer], run: Callable[[], Any]) -> list[int]:
    """Multiply-accumulate operations of the first call of each branch in a run, in order of execution.

    Counted are matrix products, attention's among them, and convolutions; norms and activations are not.

    Args:
        layers: of one network, see `diffaccel.branches.layers`.
        run: calls the network at least once.

    Raises:
        RuntimeError: a branch that the run did not reach.
    """
    branches = [branch for layer in layers for branch in layer.branches]
    counted: dict[int, int] = {}
    with ExitStack() as undo:
        for i, branch in enumerate(branches):
            undo.callback(Patch(branch.owner, branch.attr, _counting(counted, i)).remove)
        run()
    if missing := [branch.name for i, branch in enumerate(branches) if i not in counted]:
        raise RuntimeError(f"these branches were never called, so their cost is unknown: {', '.join(missing)}")
    return [counted[i] for i in range(len(branches))]


def _counting(counted: dict[int, int], number: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if number not in counted:
                # Fused attention, of which no count is known, is taken only where nothing needs a gradient.
                fresh = tree_map(_leaf, (args, kwargs))
                with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                    real(*fresh[0], **fresh[1])
                counted[number] = counter.get_total_flops() // 2
            return real(*args, **kwargs)

        return call

    return wrap


def _leaf(value: Any) -> Any:
    """A tensor of the same values that needs a gradient of its own."""
    return value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value
