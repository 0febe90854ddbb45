"""What the sweep over all denoiser classes found out about some of them. `tests/test_sweep.py` checks every line."""

from __future__ import annotations

# Networks that cannot be built or run at toy size, and why.
UNBUILDABLE: dict[str, str] = {}

# Networks that are not told the time, so that only the scheduler of a pipeline says where a step ends, and one such.
TIMELESS: dict[str, str] = {"UVit2DModel": "AmusedPipeline"}

# Levels that one would expect to fit by the kind of network, and what the error that refuses them says.
UNFIT: dict[tuple[str, str], str] = {
    (name, "deep"): "no deep site was found"
    for name in ("Kandinsky3UNet", "StableCascadeUNet", "UNetControlNetXSModel", "WuerstchenDiffNeXt")
}

# How many sites a network has and never calls: layers for sound that its class inherits from another.
UNUSED: dict[tuple[str, str], int] = {("SanaWMLTX2RefinerTransformer3DModel", "sublayer"): 10}

# What runs in skipped steps beside projections and norms: attention, feed-forward and residual layers that prepare
# text, time or latents for the chain of blocks, or lie beside it.
PREPARING: dict[str, tuple[str, ...]] = {
    "BriaFibo2Transformer2DModel": ("perceiver",),
    "GlmImageTransformer2DModel": ("glyph_projector", "prior_projector"),
    "HunyuanDiT2DModel": ("time_extra_emb",),
    "HunyuanImageTransformer2DModel": ("context_embedder",),
    "HunyuanVideo15Transformer3DModel": ("context_embedder",),
    "HunyuanVideoFramepackTransformer3DModel": ("context_embedder",),
    "HunyuanVideoTransformer3DModel": ("context_embedder",),
    "I2VGenXLUNet": ("image_latents_temporal_encoder", "transformer_in"),
    "Kandinsky3UNet": ("add_time_condition",),
    "Krea2Transformer2DModel": ("text_fusion",),
    "MochiTransformer3DModel": ("time_embed",),
    "UNet3DConditionModel": ("transformer_in",),
    "WanAnimateTransformer3DModel": ("face_adapter", "motion_encoder"),
}

# Pipelines that tests run whole beside the families of `tests/tiny.py`, and the test file that does.
WHOLE: dict[str, str] = {
    "AmusedPipeline": "test_contracts_loops.py",
    "FluxImg2ImgPipeline": "test_acceleration.py",
    "StableDiffusionControlNetPipeline": "test_contracts_loops.py",
    "StableDiffusionImg2ImgPipeline": "test_contracts_loops.py",
    "StableDiffusionInpaintPipeline": "test_contracts_loops.py",
    "WanPipeline": "test_contracts_loops.py",
}

# Pipelines in which nothing denoises step by step, or nothing that has a class of its own.
WITHOUT: dict[str, str] = {
    "DiffusionGemmaPipeline": "a diffusion language model; refused, see docs/text.md",
    "FluxPriorReduxPipeline": "prepares embeddings, no steps",
    "LLaDA2Pipeline": "a diffusion language model; block_cache, see docs/text.md",
    "LTX2LatentUpsamplePipeline": "one pass, no steps",
    "LTX2VideoDiffusionDecodePipeline": "its decoder denoises within one call",
    "LTXLatentUpsamplePipeline": "one pass, no steps",
}
