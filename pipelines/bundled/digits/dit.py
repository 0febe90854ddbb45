"""Everything that is particular to DiT: the miniature transformer, its classes, and the assembled pipeline."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn

from diffaccel.pipelines.bundled.digits.captions import BACKGROUNDS, DIGITS, FOREGROUNDS, Scene, scenes
from diffaccel.pipelines.bundled.digits.data import SIZE
from diffaccel.pipelines.bundled.digits.objective import noise_schedule
from diffaccel.pipelines.bundled.digits.vae import FACTOR

EMPTY_CLASS = 1000
"""The class that stands for none: the number is fixed in ``DiTPipeline``."""


def classes() -> list[Scene]:
    """The scene of each class: all of one digit, whether the text pipelines are trained on them or not."""
    return scenes(items=1)


def build_transformer(channels: int, width: int = 128, blocks: int = 6) -> DiTTransformer2DModel:
    """A miniature DiT; modulation and output start at zero, so that every block starts as the identity.

    The embedding of a class starts as the sum of random vectors of its digit, its colour and its background; those of
    the empty class and of the numbers that stand for no class start at zero.
    """
    model = DiTTransformer2DModel(
        num_attention_heads=width // 32,
        attention_head_dim=32,
        in_channels=channels,
        out_channels=channels,  # named, since the pipeline asks for it
        num_layers=blocks,
        sample_size=SIZE // FACTOR,
        patch_size=2,
        num_embeds_ada_norm=EMPTY_CLASS,
    )
    modulations = [block.norm1.linear for block in model.transformer_blocks]
    for layer in [*modulations, model.proj_out_1, model.proj_out_2]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    numbers = torch.tensor([[scene.indices[k] for k in (1, 2, 5)] for scene in classes()])
    for block in model.transformer_blocks:
        embedder = block.norm1.emb.class_embedder
        embedder.dropout_prob = 0.0  # in each block by itself; the training drops classes from all blocks at once
        parts = [torch.randn(size, width) for size in (len(DIGITS), len(FOREGROUNDS), len(BACKGROUNDS))]
        rows = torch.stack([part[numbers[:, k]] for k, part in enumerate(parts)]).sum(0) / len(parts) ** 0.5
        with torch.no_grad():
            embedder.embedding_table.weight.zero_()[: len(rows)] = rows
    return model


def hidden_matrices(model: DiTTransformer2DModel) -> list[nn.Parameter]:
    """The weight matrices inside the blocks, but for embeddings of times and classes."""
    return [
        parameter
        for name, parameter in model.transformer_blocks.named_parameters()
        if parameter.ndim == 2 and ".emb." not in name
    ]


class DiTNoise(nn.Module):
    """The transformer as the training loop calls it."""

    def __init__(self, transformer: DiTTransformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, noisy: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        """Predicted noise of latents [B, C, 8, 8] at whole times [B] of classes [B]."""
        noise: Tensor = self.transformer(noisy, timestep=time, class_labels=classes, return_dict=False)[0]
        return noise


def assemble(transformer: DiTTransformer2DModel, vae: AutoencoderTiny) -> DiTPipeline:
    """The pipeline of these parts, with captions as labels."""
    labels = {number: scene.caption for number, scene in enumerate(classes())}
    pipeline = DiTPipeline(transformer=transformer, vae=vae, scheduler=noise_schedule(), id2label=labels)
    pipeline.register_to_config(id2label=labels)  # else they would not be saved
    return pipeline


def call_defaults(guidance: float) -> dict[str, object]:
    """Arguments with which the pipeline's gates are measured."""
    return {"num_inference_steps": 28, "guidance_scale": guidance}
