"""Real diffusers classes at toy size, randomly initialised: the families every method is tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from torch import Tensor, nn

from diffaccel.sites import LEVELS

TEXT_TOKENS = 6
TEXT_WIDTH = 24


@dataclass(frozen=True)
class Family:
    """A pipeline class at toy size: how to make one, and how to run it from a seed to a float tensor.

    `run(pipe, batch=1, steps=8, guidance=False, seed=0, pick=None)` draws the inputs of `batch` samples from the seed;
    `pick` keeps one of them, so that a single run can be compared with its place in a batch.
    """

    network: str
    make: Callable[..., Any]
    run: Callable[..., Tensor]

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels this family has sites at; only UNets have a deep branch."""
        return tuple(level for level in LEVELS if level != "deep" or self.network == "unet")

    def denoiser(self, pipe: Any) -> nn.Module:
        """The network of a pipeline of this family."""
        network: nn.Module = getattr(pipe, self.network)
        return network


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, modulation layers included: diffusers leaves those near zero, which hides errors in features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.1 if parameter.ndim < 2 else 0.1 + max(1, parameter.shape[1:].numel()) ** -0.5
            offset = 1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0  # scales of norms
            parameter.copy_(offset + torch.randn(parameter.shape, generator=generator) * scale)
    return network.eval().requires_grad_(False)


def _draw(batch: int, shapes: dict[str, tuple[int, ...]], seed: int, pick: int | None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(batch, *shape, generator=generator) for name, shape in shapes.items()}
    return drawn if pick is None else {name: value[pick : pick + 1] for name, value in drawn.items()}


def flux_transformer(seed: int = 0) -> FluxTransformer2DModel:
    """Two double and two single blocks of width 32."""
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return randomize(network, seed)


def flux(seed: int = 0, transformer: nn.Module | None = None, kind: type[Any] = FluxPipeline) -> Any:
    """A pipeline of the Flux family without text encoders: prompts are given as embeddings."""
    torch.manual_seed(seed)
    narrow = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    vae = AutoencoderTiny(latent_channels=4, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), **narrow)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return _quiet(kind(scheduler=scheduler, vae=vae.eval(), transformer=transformer or flux_transformer(seed), **parts))


def run_flux(
    pipe: Any,
    batch: int = 1,
    steps: int = 8,
    guidance: bool = False,
    seed: int = 0,
    pick: int | None = None,
    **more: Any,
) -> Tensor:
    """Latents of a toy Flux run; guidance makes two calls of the network a step."""
    text = {"prompt_embeds": (TEXT_TOKENS, TEXT_WIDTH), "pooled_prompt_embeds": (TEXT_WIDTH,)}
    if guidance:
        text |= {f"negative_{name}": shape for name, shape in text.items()}
        more["true_cfg_scale"] = 3.0
    inputs = _draw(batch, {"latents": (16, 16), **text}, seed, pick)
    images: Tensor = pipe(height=32, width=32, num_inference_steps=steps, output_type="latent", **inputs, **more).images
    return images


def dit(seed: int = 0) -> DiTPipeline:
    """A class-conditional DiT of three blocks; guidance runs both halves in one batch."""
    torch.manual_seed(seed)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return _quiet(DiTPipeline(randomize(network, seed), _vae(), DDIMScheduler()))


def run_dit(
    pipe: Any, batch: int = 1, steps: int = 8, guidance: bool = False, seed: int = 0, pick: int | None = None
) -> Tensor:
    """Pictures of a toy DiT run, classes 1, 2, 3, ..."""
    chosen = range(batch) if pick is None else [pick]
    output = pipe(
        class_labels=[1 + i for i in chosen],
        guidance_scale=4.0 if guidance else 1.0,
        generator=[torch.Generator().manual_seed(100 * seed + i) for i in chosen],
        num_inference_steps=steps,
        output_type="np",
    )
    return torch.from_numpy(output.images)


def unet(seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """A UNet of one attention level and one convolution level."""
    defaults = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return randomize(UNet2DConditionModel(**{**defaults, **config}), seed)


def stable_diffusion(seed: int = 0) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5's class without text encoder and safety checker."""
    torch.manual_seed(seed)
    return _quiet(
        StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=None,
            tokenizer=None,
            unet=unet(seed),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def stable_diffusion_xl(seed: int = 0) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL's class without text encoders."""
    torch.manual_seed(seed)
    network = unet(
        seed,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return _quiet(
        StableDiffusionXLPipeline(
            vae=_vae(),
            unet=network,
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            add_watermarker=False,
            **parts,
        )
    )


def run_unet(
    pipe: Any,
    batch: int = 1,
    steps: int = 8,
    guidance: bool = False,
    seed: int = 0,
    pick: int | None = None,
    **more: Any,
) -> Tensor:
    """Latents of a toy Stable Diffusion run; guidance runs both halves in one batch."""
    text: dict[str, tuple[int, ...]] = {"prompt_embeds": (TEXT_TOKENS, TEXT_WIDTH)}
    if isinstance(pipe, StableDiffusionXLPipeline):
        text["pooled_prompt_embeds"] = (TEXT_WIDTH,)
    if guidance:
        text |= {f"negative_{name}": shape for name, shape in text.items()}
    inputs = _draw(batch, {"latents": (4, 8, 8), **text}, seed, pick)
    images: Tensor = pipe(
        guidance_scale=4.0 if guidance else 1.0,
        height=8 * pipe.vae_scale_factor,
        width=8 * pipe.vae_scale_factor,
        num_inference_steps=steps,
        output_type="latent",
        **inputs,
        **more,
    ).images
    return images


def _vae() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


FAMILIES = {
    "flux": Family("transformer", flux, run_flux),
    "dit": Family("transformer", dit, run_dit),
    "sd": Family("unet", stable_diffusion, run_unet),
    "sdxl": Family("unet", stable_diffusion_xl, run_unet),
}

# Every family with each of its levels, to be parametrised over as `("family", "level")`.
FAMILY_LEVELS = {f"{name}-{level}": (family, level) for name, family in FAMILIES.items() for level in family.levels}
