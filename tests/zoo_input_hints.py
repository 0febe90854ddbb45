"""Arguments of `forward` that neither their names nor errors tell, by class, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers.transformer_ideogram4 import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR
from torch import Generator, Tensor

from tests.zoo_config import HEAD_DIM
from tests.zoo_makers import FRAMES, HEIGHT, TEXT, WIDTH, Maker, Sketch, constant, noise

IMAGE = (HEIGHT // 2) * (WIDTH // 2)  # tokens of one picture, in patches of 2 by 2
VIDEO = FRAMES * IMAGE


def _time(*shape: int, scale: float = 1.0) -> Callable[[float], Tensor]:
    """The time, repeated to a shape."""
    return lambda time: torch.full(shape, scale * time)


def _codes(count: int, *shape: int) -> Maker:
    """Random entries of a codebook."""
    return lambda s, name, g: torch.randint(0, count, shape, generator=g)


def _several(count: int, *shape: int) -> Maker:
    return lambda s, name, g: [torch.randn(shape, generator=g) for _ in range(count)]


def _video_rotary(s: Sketch, name: str, g: Generator) -> tuple[Tensor, Tensor]:
    rotary: tuple[Tensor, Tensor] = s.network.build_rotary_emb_for_absolute_positions(
        1, list(range(FRAMES)), HEIGHT // 2, WIDTH // 2, torch.device("cpu"), 24.0
    )
    return rotary


ARGUMENTS: dict[str, dict[str, Any]] = {
    # The channels of the configuration are those of latents and context together.
    "AceStepTransformer1DModel": {"hidden_states": noise(1, 8, 64), "context_latents": noise(1, 8, 128)},
    # A time for every frame.
    "AnyFlowFARTransformer3DModel": {
        "hidden_states": noise(1, FRAMES, 16, HEIGHT, WIDTH),
        "chunk_partition": constant([1] * FRAMES),
        "timestep": _time(1, FRAMES),
        "r_timestep": _time(1, FRAMES),
    },
    "AnyFlowTransformer3DModel": {"timestep": _time(1, FRAMES), "r_timestep": _time(1, FRAMES)},
    # Text features of several layers of the encoder.
    "BriaFibo2Transformer2DModel": {"encoder_hidden_states": noise(1, 2, TEXT, 24)},
    "BriaFiboTransformer2DModel": {"text_encoder_layers": _several(4, 1, TEXT, 24)},
    "HiDreamImageTransformer2DModel": {"encoder_hidden_states_llama3": noise(2, 1, TEXT, 28)},
    "Krea2Transformer2DModel": {"encoder_hidden_states": noise(1, TEXT, 2, 32)},
    # Text, pictures and sound packed into one sequence, with the places of each.
    "Cosmos3OmniTransformer": {
        "input_ids": constant(torch.ones(TEXT, dtype=torch.long)),
        "text_indexes": constant(torch.arange(TEXT)),
        "position_ids": constant(torch.arange(TEXT + VIDEO + 4).expand(3, -1)),
        "und_len": constant(TEXT),
        "sequence_length": constant(TEXT + VIDEO + 4),
        "vision_tokens": _several(1, 1, 48, FRAMES, HEIGHT, WIDTH),
        "vision_token_shapes": constant([(FRAMES, HEIGHT // 2, WIDTH // 2)]),
        "vision_sequence_indexes": constant(torch.arange(TEXT, TEXT + VIDEO)),
        "vision_mse_loss_indexes": constant(torch.arange(TEXT, TEXT + VIDEO)),
        "vision_timesteps": _time(VIDEO, scale=1000),
        "vision_noisy_frame_indexes": constant([torch.arange(FRAMES)]),
        "sound_tokens": _several(1, 20, 4),
        "sound_token_shapes": constant([(4, 1, 1)]),
        "sound_sequence_indexes": constant(torch.arange(TEXT + VIDEO, TEXT + VIDEO + 4)),
        "sound_mse_loss_indexes": constant(torch.arange(TEXT + VIDEO, TEXT + VIDEO + 4)),
        "sound_timesteps": _time(4, scale=1000),
        "sound_noisy_frame_indexes": constant([torch.arange(4)]),
        "moving": ("vision_tokens", "sound_tokens"),
    },
    # Its codes choose a place in every picture.
    "GlmImageTransformer2DModel": {
        "prior_token_id": _codes(32, 1, IMAGE),
        "prior_token_drop": constant(torch.zeros(1, dtype=torch.bool)),
    },
    # Sizes and style as the pipeline gives them.
    "HunyuanDiT2DModel": {
        "image_meta_size": constant(torch.ones(1, 6)),
        "style": constant(torch.zeros(1, dtype=torch.long)),
    },
    # Frames made before, in three resolutions.
    "HunyuanVideoFramepackTransformer3DModel": {
        "indices_latents": constant(torch.arange(FRAMES)),
        "latents_clean": noise(1, 16, 1, HEIGHT, WIDTH),
        "indices_latents_clean": constant(torch.arange(1)),
        "latents_history_2x": noise(1, 16, 2, HEIGHT, WIDTH),
        "indices_latents_history_2x": constant(torch.arange(2)),
        "latents_history_4x": noise(1, 16, 4, HEIGHT, WIDTH),
        "indices_latents_history_4x": constant(torch.arange(4)),
    },
    # Text and picture share one sequence; an indicator says which token is which.
    "Ideogram4Transformer2DModel": {
        "hidden_states": noise(1, TEXT + IMAGE, 128),
        "encoder_hidden_states": noise(1, TEXT + IMAGE, 24),
        "position_ids": constant(torch.arange(TEXT + IMAGE)[None, :, None].expand(1, -1, 3)),
        "segment_ids": constant(torch.zeros(1, TEXT + IMAGE)),
        "indicator": constant(torch.tensor([[LLM_TOKEN_INDICATOR] * TEXT + [OUTPUT_IMAGE_INDICATOR] * IMAGE])),
    },
    # Patches are cut by the pipeline.
    "JoyImageEditPlusTransformer3DModel": {
        "hidden_states": noise(1, VIDEO, 16, 1, 2, 2),
        "shape_list": constant([[(FRAMES, HEIGHT // 2, WIDTH // 2)]]),
    },
    # Sound is optional in the network, not in its pipelines.
    "Kandinsky6Transformer3DModel": {"audio_hidden_states": noise(1, 4, 20)},
    # Positions are made by the pipeline, and the default of the last argument fails.
    "LuminaNextDiT2DModel": {
        "image_rotary_emb": constant(get_2d_rotary_pos_embed_lumina(HEAD_DIM, 16, 16)),
        "cross_attention_kwargs": constant({}),
    },
    # A language model's arguments.
    "OmniGenTransformer2DModel": {
        "input_ids": constant(torch.ones(1, TEXT, dtype=torch.long)),
        "input_img_latents": constant([]),
        "input_image_sizes": constant({}),
        "attention_mask": constant(torch.ones(1, TEXT + 1 + IMAGE, TEXT + 1 + IMAGE)),
        "position_ids": constant(torch.arange(TEXT + 1 + IMAGE)[None]),
    },
    # The mask has one entry for 2 by 2 tokens of the picture.
    "QwenImage21Transformer2DModel": {"img_mask": constant(torch.tensor([[False] * TEXT + [True] * IMAGE]))},
    # A molecule: positions, latents of its residues, and what is known of it.
    "RFD4ProteinaTransformer": {
        "bb_ca": noise(1, 8, 3),
        "local_latents": noise(1, 8, 32),
        "padding_mask": constant(torch.ones(1, 8, dtype=torch.bool)),
        "conditioning": constant(
            {
                "is_in_context_conditioning": torch.zeros(1, 8, dtype=torch.bool),
                "supports_local_latent": torch.ones(1, 8, dtype=torch.bool),
            }
        ),
        "moving": ("bb_ca", "local_latents"),
    },
    # A time for every frame or token; positions are made by a method of the network.
    "SanaWMTransformer3DModel": {"timestep": _time(1, 1, FRAMES, scale=1000)},
    "SanaWMLTX2RefinerTransformer3DModel": {
        "hidden_states": noise(1, VIDEO, 128),
        "video_rotary_emb": _video_rotary,
        "timestep": _time(1, VIDEO, scale=1000),
    },
    # Codes for latents, and the time as an index.
    "Transformer2DModel": {
        "hidden_states": _codes(8, 1, HEIGHT * WIDTH),
        "encoder_hidden_states": noise(1, TEXT, 24),
        "timestep": lambda time: torch.tensor(int(99 * time)),
    },
    # The condition is a picture of eight times the size.
    "UNetControlNetXSModel": {"controlnet_cond": noise(1, 3, 8 * HEIGHT, 8 * WIDTH)},
    # Latents of text, in the shape of pictures of one column.
    "UNetFlatConditionModel": {"sample": noise(1, 4, 4, 1)},
    # The prompt is repeated for every frame.
    "UNetMotionModel": {"encoder_hidden_states": noise(FRAMES, TEXT, 24)},
    # Codes for latents, and no time at all.
    "UVit2DModel": {
        "input_ids": _codes(32, 1, HEIGHT, WIDTH),
        "pooled_text_emb": noise(1, 24),
        "micro_conds": constant(torch.ones(1, 5)),
        "moving": ("input_ids",),
    },
    # A picture is one token as well.
    "UniDiffuserModel": {"image_embeds": noise(1, 1, 24)},
    # One frame less of the pose, and four pictures of the face.
    "WanAnimateTransformer3DModel": {
        "pose_hidden_states": noise(1, 16, FRAMES - 1, HEIGHT, WIDTH),
        "face_pixel_values": noise(1, 3, 4, 16, 16),
    },
    # Six times the channels of the latents.
    "WanVACETransformer3DModel": {
        "control_hidden_states": noise(1, 96, FRAMES, HEIGHT, WIDTH),
        "control_hidden_states_scale": constant(torch.ones(1)),
    },
    # Four levels need a larger picture.
    "WuerstchenDiffNeXt": {"x": noise(1, 4, 32, 32), "effnet": noise(1, 16, 4, 4)},
}
