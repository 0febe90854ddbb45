"""How much memory the anchors of a network take, found without weights: its features, caught on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffaccel.feature import Feature, storage_bytes
from diffaccel.patch import Patch
from diffaccel.sites import sites


@dataclass(frozen=True)
class Footprint:
    """What one call of a network leaves behind at the sites of one level.

    Attributes:
        sites: names of the sites, in order of execution.
        features: tensors the sites return; a joint attention returns two.
        bytes: memory of them all, which is one anchor a site. A method of order O holds O + 1.
    """

    sites: tuple[str, ...]
    features: int
    bytes: int


def footprint(network: nn.Module, inputs: Mapping[str, Any], level: str) -> Footprint:
    """Run `network` once on `inputs` and measure what its sites return. On the meta device nothing is computed.

    Args:
        network: a denoiser; parameters and `inputs` on one device.
        inputs: the arguments of its call, both guidance halves included.
        level: level of sites, see `diffaccel.sites`.

    Raises:
        ValueError: an unknown level, or a network without a site.
    """
    caught: list[Feature] = []

    def catch(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = real(*args, **kwargs)
            caught.append(Feature(output))
            return output

        return call

    found = sites(network, level)
    patches = [Patch(site.owner, site.attr, catch) for site in found]
    try:
        with torch.no_grad():
            network(**inputs)
    finally:
        for patch in patches:
            patch.remove()
    tensors = sum(len(feature.tensors) for feature in caught)
    return Footprint(tuple(site.name for site in found), tensors, storage_bytes(caught))
