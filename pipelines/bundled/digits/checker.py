"""The checker: a small convolutional network that reads a picture and says which caption it shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffaccel.pipelines.bundled.digits.captions import BACKGROUNDS, DIGITS, FOREGROUNDS, LAYOUTS, Scene, scenes
from diffaccel.pipelines.bundled.digits.data import (
    SIZE,
    Renderer,
    blemish,
    paint,
    scene_table,
)

HEADS = (len(LAYOUTS), len(DIGITS), len(FOREGROUNDS), len(DIGITS), len(FOREGROUNDS), len(BACKGROUNDS))
"""Choices of each number in ``Scene.indices``."""


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


class DigitsChecker(ModelMixin, ConfigMixin):
    """Pictures [B, 3, 32, 32] in -1..1 to logits of layout, both digits and colours, and background."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 32, features: int = 192) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _stage(3, width, 2),
            _stage(width, 2 * width, 1),
            _stage(2 * width, 3 * width, 2),
            _stage(3 * width, 3 * width, 1),
            _stage(3 * width, 4 * width, 2),
            nn.Flatten(),
            nn.Linear(4 * width * (SIZE // 8) ** 2, features),
            nn.BatchNorm1d(features),
        )
        self.heads = nn.ModuleList(nn.Linear(features, size) for size in HEADS)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, 192] before the heads, for distances between sets of pictures."""
        result: Tensor = self.trunk(images)
        return result

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of the numbers in ``Scene.indices``; those of a second item mean nothing for a single one."""
        features = F.relu(self.features(images))
        return tuple(head(features) for head in self.heads)

    @torch.no_grad()
    def scenes(self, images: Any) -> list[Scene]:
        """The scene read in each picture; ``images`` as accepted by :func:`as_tensor`."""
        batch = as_tensor(images).to(self.device, self.dtype)
        logits = [self(part) for part in batch.split(256)]
        indices = torch.stack([torch.cat(head).argmax(1) for head in zip(*logits, strict=True)], dim=1)
        return [Scene.of(*row) for row in indices.tolist()]

    def read(self, images: Any) -> list[str]:
        """The caption read in each picture; ``images`` as accepted by :func:`as_tensor`."""
        return [scene.caption for scene in self.scenes(images)]


def as_tensor(images: Any) -> Tensor:
    """Pictures to a float tensor [B, 3, 32, 32] in -1..1.

    Takes a list of PIL images, an array [B, 32, 32, 3] (bytes, or floats in 0..1 as ``output_type="np"`` returns) or a
    tensor [B, 3, 32, 32] already in -1..1.

    Raises:
        ValueError: the pictures are not 32 by 32 with three channels.
    """
    if isinstance(images, Tensor):
        batch = images.float()
    else:
        if not isinstance(images, np.ndarray):
            images = np.stack([np.asarray(image.convert("RGB")) for image in images])
        scale = 127.5 if images.dtype == np.uint8 else 0.5
        batch = torch.from_numpy(images.astype(np.float32) / scale - 1).permute(0, 3, 1, 2)
    if batch.ndim != 4 or tuple(batch.shape[1:]) != (3, SIZE, SIZE):
        raise ValueError(
            f"the checker reads pictures of 3x{SIZE}x{SIZE}, got {tuple(batch.shape)}; generate at that size"
        )
    return batch


def train_checker(output: Path, seconds: float = 240, batch: int = 128, seed: int = 0) -> DigitsChecker:
    """Train on the training handwriting for so many seconds and save to ``output``.

    A third of each batch is painted in arbitrary colours and judged by layout and digits alone, which keeps shape and
    colour apart. A third of the pictures holds a single item.
    """
    torch.manual_seed(seed)
    model: DigitsChecker = DigitsChecker()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    render = Renderer("train", seed=None)
    start, bar = time.monotonic(), tqdm(desc="checker", unit="it")
    while (progress := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 10 * progress + 0.05, 1.4 * (1 - progress) + 1e-3)
        indices = torch.stack([torch.randint(choices, (batch,)) for choices in HEADS], dim=1)
        odd = torch.arange(batch) < batch // 3
        front, back = render.colours(indices)
        front = torch.where(odd[:, None, None], torch.rand_like(front) * 2 - 1, front)
        back = torch.where(odd[:, None], torch.rand_like(back) * 2 - 1, back)
        logits = model(blemish(paint(render.warped(indices), front, back)))
        loss = _reading_loss(logits, indices, render.present[indices[:, 0], 1], odd)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    model.eval().half().save_pretrained(output)
    model.float()
    return model


def _reading_loss(logits: tuple[Tensor, ...], indices: Tensor, pair: Tensor, odd: Tensor) -> Tensor:
    """Cross-entropy of all numbers that a picture shows: of second items in pairs only, of colours unless ``odd``."""
    everywhere = torch.ones_like(pair)
    shown = (everywhere, everywhere, ~odd, pair, pair & ~odd, ~odd)
    smoothing = (0.0, 0.05, 0.0, 0.05, 0.0, 0.0)
    losses = [
        F.cross_entropy(logits[k][shown[k]], indices[shown[k], k], label_smoothing=smoothing[k]) for k in range(6)
    ]
    return torch.stack(losses).sum()


def accuracy(model: DigitsChecker, images: Tensor, expected: list[Scene]) -> dict[str, float]:
    """Share of pictures read exactly right, and right in the layout, in all digits and in all colours."""
    pairs = list(zip(model.scenes(images), expected, strict=True))

    def share(part: Callable[[Scene], object]) -> float:
        return sum(part(a) == part(b) for a, b in pairs) / len(pairs)

    return {
        "exact": share(lambda scene: scene),
        "layout": share(lambda scene: scene.layout),
        "digit": share(lambda scene: [item.digit for item in scene.items]),
        "colour": share(lambda scene: ([item.colour for item in scene.items], scene.background)),
    }


def held_out_renders(count: int, seed: int = 1, items: Literal[1, 2] | None = None) -> tuple[Tensor, list[Scene]]:
    """Pictures of held-out handwriting in all scenes, for judging the checker and the VAE: half of them pairs."""
    every = scenes(items=items)
    images, rows = Renderer("held-out", seed).batch(scene_table(every), count)
    return images, [every[row] for row in rows.tolist()]
