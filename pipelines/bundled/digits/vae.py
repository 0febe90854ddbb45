"""The VAE: a genuine AutoencoderTiny, factor 4; its encoder is a patch PCA in closed form, its decoder is trained.

The encoder's strided convolutions only move pixels (32x32x3 to 8x8x48), and its last one projects on the principal
components, so encoding is linear and needs no training. The decoder has to fill in what the projection dropped.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.pipelines.bundled.digits.captions import scenes
from diffaccel.pipelines.bundled.digits.data import Renderer, scene_table

FACTOR = 4
PATCH = 3 * FACTOR**2
SCALING = 2.0


def build_vae(channels: int = 12, width: int = 32) -> AutoencoderTiny:
    """An AutoencoderTiny with an encoder without nonlinearity and a decoder of three levels."""
    return AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(PATCH, PATCH, PATCH),
        num_encoder_blocks=(0, 0, 0),
        decoder_block_out_channels=(width, width, width),
        num_decoder_blocks=(3, 1, 0),
    )


@torch.no_grad()
def _space_to_depth(vae: AutoencoderTiny) -> None:
    """Set the convolutions before the last to move each 4x4 patch into 48 channels: identity, then twice 2x2."""
    first, second, third = vae.encoder.layers[0], vae.encoder.layers[1], vae.encoder.layers[2]
    for layer in (first, second, third):
        layer.weight.zero_()
    first.bias.zero_()
    for channel in range(3):
        first.weight[channel, channel, 1, 1] = 1
    for layer, channels in ((second, 3), (third, 12)):
        for corner in range(4):
            for channel in range(channels):
                layer.weight[corner * channels + channel, channel, 1 + corner // 2, 1 + corner % 2] = 1


@torch.no_grad()
def fit_encoder(vae: AutoencoderTiny, images: Tensor, whitening: float = 0.65) -> float:
    """Set the encoder to the principal components of the pictures' 4x4 patches.

    Component k is divided by its deviation to the power ``whitening``: 1 gives every component the same variance, 0
    keeps the pictures' own. Latents are stored at half the scale the denoiser sees: the decoder squashes them at 3.

    Args:
        vae: changed in place.
        images: pictures [N, 3, 32, 32] in -1..1.
        whitening: exponent, 0..1.

    Returns:
        The share of the patches' variance that the kept components hold.
    """
    _space_to_depth(vae)
    last = vae.encoder.layers[3]
    patches = vae.encoder.layers[:3](images.add(1).div(2)).permute(0, 2, 3, 1).reshape(-1, PATCH)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    kept = values.flip(0)[: last.out_channels]
    rows = vectors.flip(1)[:, : last.out_channels].T / kept.sqrt()[:, None] ** whitening
    rows = rows / (rows @ (patches - mean).T).std() / SCALING
    last.weight.zero_()
    last.weight[:, :, 1, 1] = rows
    last.bias.copy_(-rows @ mean)
    vae.register_to_config(scaling_factor=SCALING, shift_factor=0.0)
    return float(kept.sum() / values.sum())


def latents_of(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    """Latents [B, C, 8, 8] as the denoiser sees them."""
    latents: Tensor = (vae.encode(images).latents - vae.config.shift_factor) * vae.config.scaling_factor
    return latents


def decode(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pictures [B, 3, 32, 32] in -1..1 of the denoiser's latents."""
    images: Tensor = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    return images


def train_vae(
    output: Path, channels: int = 12, seconds: float = 120, batch: int = 64, seed: int = 0
) -> AutoencoderTiny:
    """Fit the encoder, train the decoder for so many seconds (mean squared error), save to ``output``.

    A tenth of standard noise on the latents teaches the decoder to forgive a generator's small errors.
    """
    torch.manual_seed(seed)
    render, table = Renderer("train", seed), scene_table(scenes())
    vae = build_vae(channels).to(memory_format=torch.channels_last)
    share = fit_encoder(vae, render.batch(table, 8000)[0])
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=3e-3, weight_decay=0.0)
    start, bar = time.monotonic(), tqdm(desc=f"VAE ({share:.1%} of variance)", unit="it")
    while (progress := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 20 * progress + 0.05, 1.5 * (1 - progress) + 1e-3)
        images, _ = render.batch(table, batch)
        with torch.no_grad():
            latents = latents_of(vae, images)
            latents = latents + 0.1 * torch.rand(batch, 1, 1, 1) * torch.randn_like(latents)
        loss = F.mse_loss(decode(vae, latents), images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        bar.update()
        bar.set_postfix(psnr=f"{10 * torch.log10(4 / loss.detach()).item():.1f}", refresh=False)
    bar.close()
    vae.eval().requires_grad_(False)
    vae.save_pretrained(output)
    return vae


@torch.no_grad()
def reconstruct(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    """Pictures after encoding and decoding, clipped to -1..1."""
    return torch.cat([decode(vae, latents_of(vae, part)) for part in images.split(256)]).clamp(-1, 1)
