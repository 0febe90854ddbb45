"""The checker: a small convolutional network that reads a picture and says which caption it shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffaccel.pipelines.bundled.digits.captions import BACKGROUNDS, DIGITS, FOREGROUNDS, Scene, scenes
from diffaccel.pipelines.bundled.digits.data import SIZE, Renderer, glyphs, paint, palette, scene_table


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


class DigitsChecker(ModelMixin, ConfigMixin):
    """Pictures [B, 3, 32, 32] in -1..1 to logits of digit [B, 10], foreground [B, 6] and background [B, 4]."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 32, features: int = 128) -> None:
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
        sizes = (len(DIGITS), len(FOREGROUNDS), len(BACKGROUNDS))
        self.heads = nn.ModuleList(nn.Linear(features, size) for size in sizes)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, 128] before the heads, for distances between sets of pictures."""
        result: Tensor = self.trunk(images)
        return result

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of digit, foreground and background."""
        features = F.relu(self.features(images))
        digit, foreground, background = (head(features) for head in self.heads)
        return digit, foreground, background

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


def _warp(ink: Tensor) -> Tensor:
    """Random turn (7 degrees), size (24..31 px), shear and shift (2 px) of handwriting [B, 8, 8] on a canvas."""
    n = len(ink)
    angle, shear = 0.12 * torch.randn(n), 0.1 * torch.randn(n)
    zoom = SIZE / (24 + 7 * torch.rand(n))
    shift = (torch.rand(n, 2) - 0.5) * 8 / SIZE
    rows = [zoom * angle.cos(), zoom * (shear - angle.sin()), zoom * angle.sin(), zoom * angle.cos()]
    matrix = torch.cat([torch.stack(rows, 1).view(n, 2, 2), shift[:, :, None]], dim=2)
    grid = F.affine_grid(matrix, [n, 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(ink[:, None], grid, mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)


def _blemish(images: Tensor) -> Tensor:
    """A little blur and noise, so that decoded pictures are read as well as rendered ones."""
    n = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images.lerp(blurred, torch.rand(n, 1, 1, 1))
    return images + 0.08 * torch.rand(n, 1, 1, 1) * torch.randn_like(images)


def train_checker(output: Path, seconds: float = 120, batch: int = 128, seed: int = 0) -> DigitsChecker:
    """Train on the training handwriting for so many seconds and save to ``output``.

    A third of each batch is painted in arbitrary colours and judged by its digit alone, which keeps shape and colour
    apart.
    """
    torch.manual_seed(seed)
    model: DigitsChecker = DigitsChecker()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    ink, labels = glyphs("train")
    table = scene_table(scenes())
    foregrounds, backgrounds = palette(FOREGROUNDS), palette(BACKGROUNDS)
    start, bar = time.monotonic(), tqdm(desc="checker", unit="it")
    while (progress := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 10 * progress + 0.05, 1.4 * (1 - progress) + 1e-3)
        rows = torch.randint(len(ink), (batch,))
        _, front, back = table[torch.randint(len(table), (batch,))].unbind(1)
        odd = torch.arange(batch) < batch // 3
        front_rgb = torch.where(odd[:, None], torch.rand(batch, 3) * 2 - 1, foregrounds[front])
        back_rgb = torch.where(odd[:, None], torch.rand(batch, 3) * 2 - 1, backgrounds[back])
        images = _blemish(paint(_warp(ink[rows]), front_rgb, back_rgb))
        digit, foreground, background = model(images)
        loss = F.cross_entropy(digit, labels[rows], label_smoothing=0.05)
        loss = loss + F.cross_entropy(foreground[~odd], front[~odd]) + F.cross_entropy(background[~odd], back[~odd])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    model.eval().half().save_pretrained(output)
    model.float()
    return model


def accuracy(model: DigitsChecker, images: Tensor, expected: list[Scene]) -> dict[str, float]:
    """Share of pictures read exactly right, and right in the digit and in both colours."""
    read = model.scenes(images)
    pairs = list(zip(read, expected, strict=True))
    return {
        "exact": sum(a == b for a, b in pairs) / len(pairs),
        "digit": sum(a.digit == b.digit for a, b in pairs) / len(pairs),
        "colour": sum(a.indices[1:] == b.indices[1:] for a, b in pairs) / len(pairs),
    }


def held_out_renders(count: int, seed: int = 1) -> tuple[Tensor, list[Scene]]:
    """Pictures of held-out handwriting in all scenes, for judging the checker and the VAE."""
    every = scenes()
    images, rows = Renderer("held-out", seed).batch(scene_table(every), count)
    return images, [every[row] for row in rows.tolist()]
