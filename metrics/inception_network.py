"""The Inception network of FID, written as a table of its layers.

It is TensorFlow's classifier of 2015-12-05 and not torchvision's Inception: other weights, 1008 classes, average pools
that leave the padding out, and a maximum pool in the last block. Layers have the names of torch-fidelity's and
pytorch-fid's state dicts. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffaccel.metrics.features import Features

SIDE, DIMENSION, CLASSES = 299, 2048, 1008
LOW, HIGH = -1.0, 127 / 128
"""What bytes 0 and 255 become: (byte - 128) / 128, as in TensorFlow's graph."""

_SPATIAL = "Mixed_6d", 7
"""Block, and how many of its first channels are the spatial features: ``mixed_6/conv`` in TensorFlow's names."""

# Channels, kernel and, where it is not 1, stride: "96:3/2", "192:1x7" (height x width). A "!" leaves the padding out.
_STEM = {
    "Conv2d_1a_3x3": "32:3/2!",
    "Conv2d_2a_3x3": "32:3!",
    "Conv2d_2b_3x3": "64:3",
    "pool1": "",
    "Conv2d_3b_1x1": "80:1",
    "Conv2d_4a_3x3": "192:3!",
    "pool2": "",
}
_A = {"branch1x1": "64:1", "branch5x5": "48:1 64:5", "branch3x3dbl": "64:1 96:3 96:3", "branch_pool": "{}:1"}
_B = {"branch3x3": "384:3/2!", "branch3x3dbl": "64:1 96:3 96:3/2!", "pool": ""}
_C = {
    "branch1x1": "192:1",
    "branch7x7": "{0}:1 {0}:1x7 192:7x1",
    "branch7x7dbl": "{0}:1 {0}:7x1 {0}:1x7 {0}:7x1 192:1x7",
    "branch_pool": "192:1",
}
_D = {"branch3x3": "192:1 320:3/2!", "branch7x7x3": "192:1 192:1x7 192:7x1 192:3/2!", "pool": ""}
_E = {  # "|": both layers read the same and their channels are joined
    "branch1x1": "320:1",
    "branch3x3": "384:1 384:1x3|384:3x1",
    "branch3x3dbl": "448:1 384:3 384:1x3|384:3x1",
    "branch_pool": "192:1",
}
_MIXED = {
    "Mixed_5b": (_A, 32, "average"),
    "Mixed_5c": (_A, 64, "average"),
    "Mixed_5d": (_A, 64, "average"),
    "Mixed_6a": (_B, 0, "reduce"),
    "Mixed_6b": (_C, 128, "average"),
    "Mixed_6c": (_C, 160, "average"),
    "Mixed_6d": (_C, 160, "average"),
    "Mixed_6e": (_C, 192, "average"),
    "Mixed_7a": (_D, 0, "reduce"),
    "Mixed_7b": (_E, 0, "average"),
    "Mixed_7c": (_E, 0, "maximum"),
}


class Inception(nn.Module):
    """Pictures (n, 3, 299, 299) in -1..127/128 to all three kinds of features.

    ``pooled`` (n, 2048) is for FID and KID. ``spatial`` (n, 2023) is for sFID (Nash et al., "Generating Images with
    Sparse Representations", ICML 2021): 7 channels of 17 x 17 after ReLU, channels last, as ADM has it. ``logits``
    (n, 1008) leave out the bias, as every inception score does that follows the original.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, word in _STEM.items():
            if word:
                conv = _Conv(channels, word)
                self.add_module(name, conv)
                channels = conv.channels
        for name, (table, width, pool) in _MIXED.items():
            mixed = _Mixed(channels, table, width, pool)
            self.add_module(name, mixed)
            channels = mixed.channels
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Features:
        for name, word in _STEM.items():
            x = self.get_submodule(name)(x) if word else F.max_pool2d(x, 3, stride=2)
        spatial = None
        for name in _MIXED:
            x = self.get_submodule(name)(x)
            if name == _SPATIAL[0]:  # the 1x1 branch comes first
                spatial = x[:, : _SPATIAL[1]].permute(0, 2, 3, 1).flatten(1)
        pooled = x.mean(dim=(2, 3))
        return Features(pooled, spatial, F.linear(pooled, self.fc.weight))


class _Conv(nn.Module):
    """Convolution without bias, batch normalization and ReLU, from one word of the table."""

    def __init__(self, channels_in: int, word: str) -> None:
        super().__init__()
        match = re.fullmatch(r"(\d+):(\d+)(?:x(\d+))?(?:/(\d+))?(!?)", word)
        if match is None:
            raise ValueError(f"no layer is written {word!r}")
        channels, height, width, stride = (int(number) if number else 0 for number in match.groups()[:4])
        kernel = (height, width or height)
        padding = (0, 0) if match[5] else (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride or 1, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Mixed(nn.Module):
    """Branches that read the same and are joined, from one entry of the table."""

    def __init__(self, channels_in: int, table: dict[str, str], width: int, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.branches: dict[str, list[list[str]]] = {}
        self.channels = 0
        for branch, text in table.items():
            steps = [step.split("|") for step in text.format(width).split()]
            self.branches[branch] = _layer_names(branch, steps)
            channels = channels_in
            for names, words in zip(self.branches[branch], steps, strict=True):
                convs = [_Conv(channels, word) for word in words]
                for name, conv in zip(names, convs, strict=True):
                    self.add_module(name, conv)
                channels = sum(conv.channels for conv in convs)
            self.channels += channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(x, branch, steps) for branch, steps in self.branches.items()], dim=1)

    def _branch(self, x: Tensor, branch: str, steps: list[list[str]]) -> Tensor:
        if "pool" in branch:
            x = _pool(x, self.pool)
        for names in steps:
            x = torch.cat([self.get_submodule(name)(x) for name in names], dim=1)
        return x


def _layer_names(branch: str, steps: list[list[str]]) -> list[list[str]]:
    """``branch`` alone, or ``branch_1``, ``branch_2``, ... where there are several, or ``branch_2a``, ``branch_2b``."""
    if len(steps) == 1:
        return [[branch]]
    letters = [[""] if len(words) == 1 else ["a", "b"] for words in steps]
    return [[f"{branch}_{number}{letter}" for letter in step] for number, step in enumerate(letters, start=1)]


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == "average":
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    return F.max_pool2d(x, 3, stride=1, padding=1) if kind == "maximum" else F.max_pool2d(x, 3, stride=2)
