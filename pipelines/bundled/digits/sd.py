"""Everything particular to Stable Diffusion: the miniature UNet, its text side, and the assembled pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from diffaccel.pipelines.bundled.digits.data import SIZE
from diffaccel.pipelines.bundled.digits.objective import noise_schedule
from diffaccel.pipelines.bundled.digits.text import WIDTH as TEXT_WIDTH
from diffaccel.pipelines.bundled.digits.text import clip_tokens_output, token_ids
from diffaccel.pipelines.bundled.digits.tokenizers import CLIP_LENGTH
from diffaccel.pipelines.bundled.digits.unet import zero
from diffaccel.pipelines.bundled.digits.vae import FACTOR


@dataclass(frozen=True)
class TextParts:
    """The tokenizer and the frozen encoder."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel

    @classmethod
    def load(cls, folder: Path) -> TextParts:
        """The parts saved under ``folder`` by :func:`.text.train_clip_tokens` or in a pipeline's own folder."""
        return cls(
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
        )

    @torch.no_grad()
    def embed(self, captions: list[str]) -> Tensor:
        """CLIP's token outputs [N, 16, 64]."""
        ids = token_ids(self.tokenizer, captions, CLIP_LENGTH)
        return torch.cat([clip_tokens_output(self.text_encoder, part) for part in ids.split(2048)])


def build_unet(channels: int, widths: tuple[int, ...] = (32, 96, 96)) -> UNet2DConditionModel:
    """A miniature of Stable Diffusion's UNet: cross-attention on all levels but the deepest.

    As in DDPM, the last convolution of each residual branch and of the network starts at zero.
    """
    model = UNet2DConditionModel(
        sample_size=SIZE // FACTOR,
        in_channels=channels,
        out_channels=channels,
        down_block_types=(*["CrossAttnDownBlock2D"] * (len(widths) - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * (len(widths) - 1)),
        block_out_channels=widths,
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, whatever its name says
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    last = [module.conv2 for module in model.modules() if hasattr(module, "conv2")]
    last += [module.proj_out for module in model.modules() if hasattr(module, "proj_out")]
    zero([*last, model.conv_out])
    return model


class UNetNoise(nn.Module):
    """The UNet as the training loop calls it: noise of latents given rows of embedded captions."""

    def __init__(self, unet: UNet2DConditionModel, text: TextParts, captions: list[str]) -> None:
        super().__init__()
        self.unet = unet
        self.tokens = text.embed(captions)

    def forward(self, noisy: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """Predicted noise of latents [B, C, 8, 8] at whole times [B] of captions [B]."""
        noise: Tensor = self.unet(noisy, time, encoder_hidden_states=self.tokens[rows], return_dict=False)[0]
        return noise


def assemble(unet: UNet2DConditionModel, text: TextParts, vae: AutoencoderTiny) -> StableDiffusionPipeline:
    """The pipeline of these parts, without a safety checker: it draws digits."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.text_encoder,
        tokenizer=text.tokenizer,
        unet=unet,
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def call_defaults(guidance: float) -> dict[str, object]:
    """Arguments with which the pipeline's gates are measured."""
    return {"height": SIZE, "width": SIZE, "num_inference_steps": 28, "guidance_scale": guidance}
