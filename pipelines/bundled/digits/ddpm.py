"""Everything that is particular to DDPM: the unconditional UNet, its grey pictures, and the assembled pipeline."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from diffaccel.pipelines.bundled.digits.captions import BACKGROUNDS, DIGITS, FOREGROUNDS, Scene, scenes
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker
from diffaccel.pipelines.bundled.digits.data import SIZE, Renderer, paint, palette, scene_table
from diffaccel.pipelines.bundled.digits.objective import noise_schedule
from diffaccel.pipelines.bundled.digits.unet import zero

SIDE = 16
"""Side of a picture in pixels."""
COLOUR, GROUND = "red", "black"
"""The colours in which the checker, which reads coloured pictures, is shown a grey one."""


def build_unet(widths: tuple[int, ...] = (32, 64, 96)) -> UNet2DModel:
    """A miniature of DDPM's UNet, with attention on its deepest level.

    As in DDPM, the last convolution of each residual branch and of the network starts at zero.
    """
    below = len(widths) - 1
    model = UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        down_block_types=(*["DownBlock2D"] * below, "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * below),
        block_out_channels=widths,
        layers_per_block=1,
        attention_head_dim=16,
        norm_num_groups=8,
    )
    zero([*(module.conv2 for module in model.modules() if hasattr(module, "conv2")), model.conv_out])
    return model


class UNetNoise(nn.Module):
    """The UNet as the training loop calls it; it takes no condition, so the rows are not looked at."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, noisy: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """Predicted noise of pictures [B, 1, 16, 16] at whole times [B]."""
        noise: Tensor = self.unet(noisy, time, return_dict=False)[0]
        return noise


class GreyRenderer:
    """Draws random handwritten digits in grey: ink is 1, the ground is -1."""

    def __init__(self, render: Renderer) -> None:
        self.render, self.table = render, scene_table(_scenes())

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Pictures [B, 1, 16, 16] in -1..1 and the digits they show [B]; turned, sheared and moved a little."""
        rows = self.render.rows(self.table, size)
        ink = self.render.warped(self.table[rows])[:, :1]
        return F.avg_pool2d(ink, SIZE // SIDE) * 2 - 1, self.table[rows, 1]


def coloured(pictures: Tensor) -> Tensor:
    """Grey pictures [B, 1, 16, 16] in -1..1 as the checker can read them: [B, 3, 32, 32] in -1..1."""
    ink = F.interpolate((pictures + 1) / 2, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1)
    foreground = palette({COLOUR: FOREGROUNDS[COLOUR]}).expand(len(ink), 1, 3)
    return paint(ink, foreground, palette({GROUND: BACKGROUNDS[GROUND]}).expand(len(ink), 3))


def assemble(unet: UNet2DModel) -> DDPMPipeline:
    """The pipeline of this network, with DDPM's own scheduler on the steps it was trained on."""
    settings = {name: noise_schedule().config[name] for name in ("beta_schedule", "beta_start", "beta_end")}
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler(clip_sample=False, **settings))


def call_defaults() -> dict[str, object]:
    """Arguments of a call of the pipeline; DDPM's own number of steps, 1000, is for those who have the time."""
    return {"num_inference_steps": 50}


@torch.no_grad()
def draw(pipe: DDPMPipeline, count: int, steps: int, seed: int = 0, batch: int = 128) -> Tensor:
    """Pictures [N, 1, 16, 16] in -1..1, as the pipeline's steps leave them within that range."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, count, batch):
        size = min(batch, count - start)
        made = pipe(batch_size=size, generator=generator, num_inference_steps=steps, output_type="np").images
        parts.append(torch.from_numpy(made).permute(0, 3, 1, 2).float() * 2 - 1)
    return torch.cat(parts)


def _scenes() -> list[Scene]:
    """A scene for each digit, all in the colours of :func:`coloured`."""
    return [scene for scene in scenes(items=1) if scene.items[0].colour == COLOUR and scene.background == GROUND]


def deterministic(pipe: DDPMPipeline) -> DDPMPipeline:
    """The same pipeline with DDIM's scheduler, which adds no noise on the way."""
    return DDPMPipeline(unet=pipe.unet, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))


@torch.no_grad()
def legibility(checker: DigitsChecker, pictures: Tensor, sure: float = 0.9) -> dict[str, float]:
    """How grey pictures [B, 1, 16, 16] in -1..1 read.

    Returns:
        ``legible``, the share in which the checker gives a digit a probability of at least ``sure``, and ``evenness``,
        the entropy of the digits read over that of all digits alike.
    """
    probability, digits = torch.cat([checker(part)[1] for part in coloured(pictures).split(256)]).softmax(1).max(1)
    shares = digits.bincount(minlength=len(DIGITS)) / len(digits)
    return {
        "legible": float((probability >= sure).float().mean()),
        "evenness": float(torch.special.entr(shares).sum() / math.log(len(DIGITS))),
    }
