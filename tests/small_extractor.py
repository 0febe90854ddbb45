"""A small network with fixed random weights, so that two implementations can be compared on the same features.

Imports nothing of ours: the processes that run the reference implementations use it too.
"""

import warnings

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Pictures (n, 3, 299, 299) in 0..255 to features (n, 24) of quite different scales."""

    input_size = 299
    value_range = (0.0, 255.0)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 12, 9, stride=4), nn.ReLU(), nn.Conv2d(12, 24, 5, stride=4), nn.AdaptiveAvgPool2d(1)
            )
            self.scale = nn.Parameter(torch.logspace(-1, 1, 24))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x / 64 - 2).flatten(1) * self.scale
        return features


class SmallTorchScript(nn.Module):
    """What clean-fid's TorchScript file offers, at the size of a toy: ``layers`` and a classifier with a bias."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.layers = nn.Sequential(nn.Conv2d(3, 2048, 13, stride=26), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            self.output = nn.Linear(2048, 1008)

    def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        features = self.layers((x.float() - 128) / 128).flatten(1)
        if return_features:
            return features
        logits = self.output(features)
        return torch.softmax(logits - self.output.bias if no_output_bias else logits, 1)


def small_torchscript(file: str) -> None:
    """Write :class:`SmallTorchScript` as clean-fid's file is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out of torch, the published file stays
        torch.jit.script(SmallTorchScript().eval()).save(file)
