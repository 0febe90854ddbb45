"""Every denoiser class of diffusers at toy size, with arguments for its `forward`: no class is built by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.tiny import randomize
from tests.zoo_census import denoisers
from tests.zoo_config import toy
from tests.zoo_config_hints import CONFIGS
from tests.zoo_input_hints import ARGUMENTS
from tests.zoo_inputs import Inputs


@dataclass(frozen=True)
class Specimen:
    """A toy network and what it is called with."""

    network: nn.Module
    inputs: Inputs

    def run(self, step: int, steps: int) -> list[Tensor]:
        """The tensors that a call returns at one step."""
        with torch.no_grad():
            return tensors(self.network(**self.inputs(step, steps)))


def tensors(output: Any) -> list[Tensor]:
    """The tensors in a network's output, whatever holds them."""
    leaves = tree_leaves(output.to_tuple() if hasattr(output, "to_tuple") else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


@cache
def specimen(name: str) -> Specimen:
    """The toy network of the class `name`, with random weights everywhere, so that the output depends on all blocks.

    Raises:
        RuntimeError: no arguments were found that the network takes.
    """
    kind = denoisers()[name]
    torch.manual_seed(0)
    network = randomize(kind(**toy(kind, CONFIGS.get(name))).float())
    inputs = Inputs(network, ARGUMENTS.get(name, {}))
    inputs.settle()
    return Specimen(network, inputs)
