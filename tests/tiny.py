"""Real diffusers classes at toy size, randomly initialised: the families every method is tested on."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn

BATCH_TOKENS = 6  # text tokens of every prompt


def randomize(network: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """Random weights, modulation layers included: diffusers leaves those near zero, which would hide errors in features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale)
    return network.eval().requires_grad_(False)


def flux_transformer(seed: int = 0) -> FluxTransformer2DModel:
    """Two double and two single blocks of width 32."""
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    return randomize(network, seed)


def flux(seed: int = 0, transformer: nn.Module | None = None) -> FluxPipeline:
    """A FluxPipeline without text encoders: prompts are given as embeddings."""
    torch.manual_seed(seed)
    vae = AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer or flux_transformer(seed),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_inputs(batch: int = 1, steps: int = 8, cfg: float = 1.0, seed: int = 7) -> dict[str, Any]:
    """Arguments of one call of `flux`; `cfg` above 1 makes two calls of the network a step."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = {
        "prompt_embeds": draw(batch, BATCH_TOKENS, 24),
        "pooled_prompt_embeds": draw(batch, 24),
        "latents": draw(batch, 16, 16),
        "height": 32,
        "width": 32,
        "num_inference_steps": steps,
        "output_type": "latent",
    }
    if cfg > 1:
        inputs |= {
            "negative_prompt_embeds": draw(batch, BATCH_TOKENS, 24),
            "negative_pooled_prompt_embeds": draw(batch, 24),
            "true_cfg_scale": cfg,
        }
    return inputs
