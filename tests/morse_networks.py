"""Toy networks of every class a Dot can be made for, and what they are called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DModel
from torch import Tensor, nn

from diffaccel.morse.dot import MorseDot
from tests import tiny

SMALL: dict[str, Any] = {"m": 1, "widths": (8,), "rank": 4}
"""A Dot for any of them."""


@dataclass(frozen=True)
class Asked:
    """What a Dot is asked: its arguments."""

    x: Tensor
    t: Tensor
    x_s: Tensor
    k_s: Tensor
    t_s: Tensor
    conditioning: dict[str, Any]

    def of(self, dot: MorseDot) -> Tensor:
        """What the Dot says."""
        residual: Tensor = dot(self.x, self.t, self.x_s, self.k_s, self.t_s, self.conditioning)
        return residual


@dataclass(frozen=True)
class Network:
    """A class of Dash: how to make one, the shape of its sample, its time at t and t_s, and its other arguments."""

    make: Callable[[], nn.Module]
    sample: tuple[int, ...]
    times: tuple[float, float]
    conditioning: dict[str, tuple[int, ...]]
    fixed: Callable[[], dict[str, Any]] = dict

    def asked(self, batch: int = 2, pick: int | None = None, dtype: torch.dtype = torch.float32) -> Asked:
        """Random arguments; `pick` keeps one of the batch."""
        shapes = {"x": self.sample, "x_s": self.sample, "k_s": self.sample, **self.conditioning}
        drawn = {name: value.to(dtype) for name, value in tiny._draw(batch, shapes, 0, pick).items()}
        t, t_s = (torch.full((len(drawn["x"]),), time) for time in self.times)
        x, x_s, k_s = (drawn.pop(name) for name in ("x", "x_s", "k_s"))
        added = {name: drawn.pop(name) for name in ("text_embeds", "time_ids") if name in drawn}
        fixed = self.fixed() | ({"added_cond_kwargs": added} if added else {})
        if "class_labels" in drawn:
            fixed["class_labels"] = drawn.pop("class_labels").argmax(1)
        return Asked(x, t, x_s, k_s, t_s, drawn | fixed)


def grid(rows: int, columns: int) -> Tensor:
    """Ids of image tokens, as Flux's pipeline makes them [L, 3]."""
    places = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros(rows * columns), *(place.flatten().float() for place in places)], dim=1)


def unet2d(**config: Any) -> nn.Module:
    """An unconditional UNet of two levels."""
    defaults: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return tiny.randomize(UNet2DModel(**{**defaults, **config}))


def sd3() -> nn.Module:
    """Two joint blocks of width 32."""
    return tiny.randomize(
        SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=tiny.TEXT_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=tiny.TEXT_WIDTH,
            pos_embed_max_size=8,
        )
    )


def _sdxl() -> nn.Module:
    network: nn.Module = tiny.stable_diffusion_xl().unet
    return network


def _dit() -> nn.Module:
    network: nn.Module = tiny.dit().transformer
    return network


_TEXT = {"encoder_hidden_states": (tiny.TEXT_TOKENS, tiny.TEXT_WIDTH)}
_POOLED = {"pooled_projections": (tiny.TEXT_WIDTH,)}
NETWORKS = {
    "unconditional": Network(unet2d, (1, 16, 16), (400.0, 500.0), {}),
    "sd": Network(tiny.unet, (4, 8, 8), (400.0, 500.0), _TEXT),
    "sdxl": Network(_sdxl, (4, 8, 8), (400.0, 500.0), {**_TEXT, "text_embeds": (tiny.TEXT_WIDTH,), "time_ids": (6,)}),
    "flux": Network(
        tiny.flux_transformer,
        (16, 16),
        (0.4, 0.5),
        {**_TEXT, **_POOLED},
        lambda: {"img_ids": grid(4, 4), "txt_ids": torch.zeros(tiny.TEXT_TOKENS, 3)},
    ),
    "dit": Network(_dit, (4, 8, 8), (400.0, 500.0), {"class_labels": (1000,)}),
    "sd3": Network(sd3, (4, 8, 8), (400.0, 500.0), {**_TEXT, **_POOLED}),
}


def woken(dot: MorseDot) -> MorseDot:
    """The Dot with all its weights moved a little, so that it returns something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dot.parameters():
            scale = 0.1 if parameter.ndim < 2 else 0.5 * parameter.shape[1:].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=scale)
    return dot.eval()
