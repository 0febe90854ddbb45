"""Arguments of `__init__` that the rules cannot tell, by class, each with its reason."""

from __future__ import annotations

from typing import Any

from tests.zoo_makers import FRAMES, TEXT

CONFIGS: dict[str, dict[str, Any]] = {
    # The number of gist tokens and the blocks that get them are fitted to the original's size.
    "BriaFibo2Transformer2DModel": {
        "min_num_gist_tokens": 4,
        "max_num_gist_tokens": 8,
        "gist_step": 1,
        "n_layers": 3,
        "injection_layer_ids": (1,),
    },
    # Its default axes are those of a head of 128. Sound is off by default.
    "Cosmos3OmniTransformer": {"rope_axes_dim": (4, 2, 2), "sound_gen": True, "sound_dim": 20},
    # The padding mask is resized with torchvision, which is no requirement of diffusers.
    "CosmosTransformer3DModel": {"concat_padding_mask": False},
    # Its defaults leave out what it reads without a check.
    "HiDreamImageTransformer2DModel": {
        "caption_channels": [24, 28],
        "llama_layers": [0, 1, 0, 1],
        "axes_dims_rope": (8, 4, 4),
    },
    # Off by default, and always on in its pipeline.
    "HunyuanVideoFramepackTransformer3DModel": {"has_clean_x_embedder": True, "has_image_proj": True},
    # A level that goes up needs more than one layer.
    "Kandinsky3UNet": {"layers_per_block": 2},
    # A class of many modes, none of which its defaults choose.
    "LatteTransformer3DModel": {
        "norm_type": "ada_norm_single",
        "num_embeds_ada_norm": 1000,
        "caption_channels": 24,
        "cross_attention_dim": 32,
        "video_length": FRAMES,
    },
    # The first three and the last block are dense, so that four blocks would have no expert.
    "NucleusMoEImageTransformer2DModel": {
        "num_layers": 5,
        "num_experts": 4,
        "capacity_factors": 2.0,
        "moe_intermediate_dim": 16,
        "num_key_value_heads": 2,
    },
    # Its defaults leave out what it reads without a check.
    "OmniGenTransformer2DModel": {"rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8}},
    # The axes' default is a constant in the code.
    "PRXTransformer2DModel": {"axes_dim": [8, 8]},
    # Of its many features of molecules those alone that every run has.
    "RFD4ProteinaTransformer": {
        "feats_seq": ("xt_bb_ca", "xt_local_latents"),
        "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
        "feats_pair_repr": ("xt_bb_ca_pair_dists",),
        "feats_pair_cond": ("time_emb_bb_ca", "time_emb_local_latents"),
        "pair_repr_dim": 16,
        "dim_cond": 16,
        "tri_mult_c": 16,
    },
    # A class of many modes; this is that of VQ Diffusion.
    "Transformer2DModel": {
        "num_vector_embeds": 9,
        "num_embeds_ada_norm": 100,
        "norm_type": "ada_norm",
        "in_channels": None,
        "out_channels": None,
        "patch_size": None,
        "cross_attention_dim": 24,
    },
    # The Fourier features of the time are joined to the channels.
    "UNet1DModel": {"extra_in_channels": 32},
    # Its token embeddings are as wide as its blocks only by a default.
    "UVit2DModel": {
        "block_out_channels": 32,
        "in_channels": 32,
        "cond_embed_dim": 24,
        "encoder_hidden_size": 24,
        "micro_cond_embed_dim": 5 * 32,
        "micro_cond_encode_dim": 32,
    },
    # Learnt positions are as many as there are text tokens.
    "UniDiffuserModel": {"num_text_tokens": TEXT},
    # An encoder of faces of 512 pixels, with sizes of its own.
    "WanAnimateTransformer3DModel": {
        "motion_encoder_size": 16,
        "motion_encoder_dim": 16,
        "motion_style_dim": 16,
        "motion_dim": 8,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
    },
}
