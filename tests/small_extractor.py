"""A small network with fixed random weights, so that two implementations can be compared on the same features.

Imports nothing of ours: the processes that run the reference implementations use it too.
"""

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
