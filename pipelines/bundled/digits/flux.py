"""Everything that is particular to Flux: the miniature transformer, its inputs, and the assembled pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from diffaccel.pipelines.bundled.digits.data import SIZE
from diffaccel.pipelines.bundled.digits.text import WIDTH as TEXT_WIDTH
from diffaccel.pipelines.bundled.digits.text import clip_output, t5_output, token_ids
from diffaccel.pipelines.bundled.digits.tokenizers import CLIP_LENGTH, T5_LENGTH
from diffaccel.pipelines.bundled.digits.vae import FACTOR


@dataclass(frozen=True)
class TextParts:
    """Both tokenizers and both frozen encoders."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    tokenizer_2: T5Tokenizer
    text_encoder_2: T5EncoderModel

    @classmethod
    def load(cls, folder: Path) -> TextParts:
        """The parts saved under ``folder`` by :func:`.text.train_text` or in a pipeline's own folder."""
        return cls(
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
            T5Tokenizer.from_pretrained(folder / "tokenizer_2"),
            T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval(),
        )

    @torch.no_grad()
    def embed(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP's pooled output [N, 64] and T5's tokens [N, 13, 64]."""
        pooled = clip_output(self.text_encoder, token_ids(self.tokenizer, captions, CLIP_LENGTH))
        tokens = t5_output(self.text_encoder_2, token_ids(self.tokenizer_2, captions, T5_LENGTH))
        return pooled, tokens


def build_transformer(channels: int, width: int = 128, double: int = 2, single: int = 4) -> FluxTransformer2DModel:
    """A miniature Flux transformer; modulation and output start at zero, so that every block starts as the identity."""
    model = FluxTransformer2DModel(
        in_channels=4 * channels,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 12, 12),
    )
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    modulations = [
        getattr(block, name) for block in blocks for name in ("norm", "norm1", "norm1_context") if hasattr(block, name)
    ]
    for layer in [*(modulation.linear for modulation in modulations), model.norm_out.linear, model.proj_out]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def hidden_matrices(model: FluxTransformer2DModel) -> list[nn.Parameter]:
    """The weight matrices inside the blocks; the rest is embeddings, output, biases and norms."""
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    return [parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2]


class FluxVelocity(nn.Module):
    """The transformer as the training loop calls it: velocity of packed latents given rows of embedded captions."""

    def __init__(self, transformer: FluxTransformer2DModel, text: TextParts, captions: list[str]) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooled, self.tokens = text.embed(captions)
        side = SIZE // FACTOR // 2
        self.image_ids = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
        self.text_ids = torch.zeros(T5_LENGTH, 3)

    def forward(self, noisy: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """Predicted noise minus data.

        Args:
            noisy: packed latents [B, 16, 4C], ``(1 - sigma) data + sigma noise``.
            sigma: noise level [B] in 0..1.
            rows: which of the captions [B].
        """
        velocity: Tensor = self.transformer(
            hidden_states=noisy,
            timestep=sigma,
            encoder_hidden_states=self.tokens[rows],
            pooled_projections=self.pooled[rows],
            txt_ids=self.text_ids,
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return velocity


def pack(latents: Tensor) -> Tensor:
    """Latents [B, C, H, W] to tokens [B, HW/4, 4C], the pipeline's own way."""
    packed: Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return packed


def assemble(transformer: FluxTransformer2DModel, text: TextParts, vae: AutoencoderTiny) -> FluxPipeline:
    """The pipeline of these parts, with Flux's own scheduler settings (dynamic shift)."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    return FluxPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=text.text_encoder,
        tokenizer=text.tokenizer,
        text_encoder_2=text.text_encoder_2,
        tokenizer_2=text.tokenizer_2,
        transformer=transformer,
    )


def call_defaults(guidance: float) -> dict[str, object]:
    """Arguments a call of the pipeline needs to make the pictures it was trained on; without them it makes 512 px."""
    return {
        "height": SIZE,
        "width": SIZE,
        "max_sequence_length": T5_LENGTH,
        "num_inference_steps": 28,
        "true_cfg_scale": guidance,
        "negative_prompt": "",
    }
