"""Clean samples: pictures as the network of a pipeline would be given them if there were no noise."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiTTransformer2DModel
from torch import Tensor

from diffaccel.denoisers import denoisers

_PACKED = ("latents", "batch_size", "num_channels_latents", "height", "width")  # as FluxPipeline packs


@torch.no_grad()
def clean_samples(pipe: Any, batch: Mapping[str, Any]) -> Tensor:
    """Pictures, or latents, of a batch in the layout of the pipeline's network, on its device and of its dtype.

    Pictures are encoded where the pipeline has a VAE, by the mode of its distribution: a sample of it would differ by
    far less than the noise that training adds, and would make a training depend on one more random state. Latents are
    those the network sees, scaled already. Both are packed where the pipeline packs them, as Flux does.

    Args:
        pipe: a diffusers pipeline whose samples are pictures.
        batch: "pixel_values" [B, C, H, W] in -1..1, or "latents" [B, C, h, w].

    Returns:
        Samples [B, C, h, w], or tokens [B, hw / 4, 4 C].

    Raises:
        ValueError: neither of the two is there, the VAE or the packing is of a kind that is not known, or the network
            does not take samples of this shape.
    """
    network = next(iter(denoisers(pipe).values()), None)
    if network is None:
        raise ValueError(f"{type(pipe).__name__} has no network that removes noise")
    weight = next(network.parameters())
    if "latents" in batch:
        samples: Tensor = batch["latents"].to(weight)
    elif "pixel_values" in batch:
        samples = _encoded(pipe, batch["pixel_values"]).to(weight)
    else:
        raise ValueError(f'a batch holds {", ".join(batch) or "nothing"}: it needs "pixel_values" or "latents"')
    if samples.ndim == 4 and hasattr(pipe, "_pack_latents"):
        samples = _packed(pipe, samples)
    _check(network, samples)
    return samples


def _encoded(pipe: Any, pictures: Tensor) -> Tensor:
    """Latents of pictures, scaled as the pipeline scales them; pictures themselves where there is no VAE."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return pictures
    if not isinstance(vae, AutoencoderKL | AutoencoderTiny) or hasattr(vae, "bn"):
        raise ValueError(
            f"how {type(pipe).__name__} scales the latents of its {type(vae).__name__} is not known here: encode the "
            'pictures yourself and give "latents" as the network sees them'
        )
    if pictures.ndim != 4 or pictures.shape[1] != vae.config.in_channels:
        raise ValueError(
            f"the {type(vae).__name__} takes pictures [B, {vae.config.in_channels}, H, W], got {list(pictures.shape)}"
        )
    encoded = vae.encode(pictures.to(vae.device, vae.dtype))
    latents: Tensor = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
    if not bool(latents.isfinite().all()):
        raise ValueError(
            f"the {type(vae).__name__} makes numbers out of range in {vae.dtype}: use it in float32, "
            "pipe.vae.to(torch.float32)"
        )
    config = vae.config
    shift: Any = config.get("shift_factor") or 0.0
    spread: Any = 1.0
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift, spread = (
            torch.tensor(config[name]).view(1, -1, 1, 1).to(latents) for name in ("latents_mean", "latents_std")
        )
    scaled: Tensor = (latents - shift) * config.scaling_factor / spread
    return scaled


def _packed(pipe: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] as tokens, the pipeline's own way."""
    if tuple(inspect.signature(pipe._pack_latents).parameters) != _PACKED:
        raise ValueError(
            f'how {type(pipe).__name__} packs latents is not known: give "latents" packed, as the network sees them'
        )
    if latents.shape[2] % 2 or latents.shape[3] % 2:
        height, width = latents.shape[2:]
        raise ValueError(f"{type(pipe).__name__} packs 2 x 2 latents, so {height} x {width} of them cannot be packed")
    packed: Tensor = pipe._pack_latents(latents, *latents.shape)
    return packed


def _check(network: Any, samples: Tensor) -> None:
    """Raise ValueError unless the network takes such samples."""
    config, kind, shape = network.config, type(network).__name__, list(samples.shape)
    channels = samples.shape[1 if samples.ndim > 3 else -1]
    if channels != config.get("in_channels", channels):
        raise ValueError(
            f"the {kind} takes samples of {config['in_channels']} channels, these are {shape}: it needs more than "
            "pictures (inpainting does), or the pictures have another number of channels"
        )
    if samples.ndim != 4:
        return
    side, step = config.get("sample_size"), 2 ** (len(config.get("down_block_types") or [0]) - 1)
    if isinstance(network, DiTTransformer2DModel) and shape[2:] != [side, side]:
        raise ValueError(f"the {kind} takes {side} x {side} samples, these are {shape}: give pictures of its size")
    if shape[2] % step or shape[3] % step:
        raise ValueError(f"the {kind} halves samples to 1/{step}, these are {shape}: give sides that can be divided")
