"""A pipeline's denoisers from their configuration files alone: on the meta device, without weights, with inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from diffaccel.denoisers import DENOISERS
from diffaccel.pipelines.source import read_json


@dataclass(frozen=True)
class Shape:
    """What a denoiser is called with.

    Attributes:
        batch: samples in one call, guidance halves included.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        scale: pixels a latent, along each side.
        text_tokens: tokens of the prompt.
    """

    batch: int
    height: int
    width: int
    scale: int
    text_tokens: int


def denoisers(source: str, index: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The denoisers of the pipeline in folder or hub id `source`, by component, on the meta device.

    Args:
        source: folder with configuration files, or hub id.
        index: its `model_index.json`.
        dtype: of parameters and features.

    Raises:
        ValueError: no denoiser, or one whose class diffusers does not have.
        OSError: a configuration file is missing.
    """
    networks = {}
    for name in DENOISERS:
        library, kind_name = index.get(name) or (None, None)
        if kind_name is None:
            continue
        kind = getattr(diffusers, str(kind_name), None)
        if library != "diffusers" or kind is None:
            raise ValueError(
                f"{name} is a {kind_name} of {library}: only classes of diffusers can be built from a config"
            )
        config = read_json(source, f"{name}/config.json")
        with torch.device("meta"):
            network: nn.Module = kind.from_config(config)
        # Not network.to(dtype): diffusers would warn about layers it keeps in float32 when it loads weights.
        networks[name] = nn.Module.to(network, dtype).eval()
    if not networks:
        raise ValueError(f"{index.get('_class_name')} has none of the components {', '.join(DENOISERS)}")
    return networks


def latent_scale(source: str, index: Mapping[str, Any]) -> int:
    """Pixels a latent, along each side: one doubling a level of the VAE below its first; 1 without a VAE.

    Raises:
        OSError: the VAE's configuration file is missing.
    """
    library, kind_name = index.get("vae") or (None, None)
    kind = getattr(diffusers, str(kind_name), None)
    if library != "diffusers" or kind is None:
        return 1
    return latent_scale_of(read_json(source, "vae/config.json"))


def latent_scale_of(config: Mapping[str, Any]) -> int:
    """Pixels a latent of a VAE with this config, along each side."""
    channels = config.get("block_out_channels") or config.get("decoder_block_out_channels")
    return int(2 ** (len(channels) - 1)) if channels else 1


def default_size(network: Any, scale: int) -> tuple[int, int]:
    """Height and width in pixels of the pictures its pipeline makes unasked."""
    # FluxPipeline.default_sample_size is 128 latents, whatever the network.
    sample = 128 if isinstance(network, FluxTransformer2DModel) else network.config.get("sample_size", 64)
    height, width = sample if isinstance(sample, (tuple, list)) else (sample, sample)
    return height * scale, width * scale


def inputs(network: nn.Module, shape: Shape) -> dict[str, Any]:
    """Arguments of one call of `network`, on its device and of its dtype, without values.

    Raises:
        NotImplementedError: the inputs of this class of network, or of this configuration of it, are not known.
    """
    for kind, build in _BUILDERS.items():
        if isinstance(network, kind):
            return build(network, shape)
    known = ", ".join(kind.__name__ for kind in _BUILDERS)
    raise NotImplementedError(f"the inputs of {type(network).__name__} are not known, only those of {known}")


def _flux(network: Any, shape: Shape) -> dict[str, Any]:
    # Latents are packed 2 x 2 into tokens.
    config, b = network.config, shape.batch
    tokens = (shape.height // (2 * shape.scale)) * (shape.width // (2 * shape.scale))
    call = {
        "hidden_states": _empty(network, b, tokens, config.in_channels),
        "encoder_hidden_states": _empty(network, b, shape.text_tokens, config.joint_attention_dim),
        "pooled_projections": _empty(network, b, config.pooled_projection_dim),
        "timestep": _empty(network, b),
        "img_ids": _empty(network, tokens, 3),
        "txt_ids": _empty(network, shape.text_tokens, 3),
    }
    return call | ({"guidance": _empty(network, b)} if config.guidance_embeds else {})


def _dit(network: Any, shape: Shape) -> dict[str, Any]:
    return {
        "hidden_states": _latents(network, shape),
        "timestep": _empty(network, shape.batch, dtype=torch.long),
        "class_labels": _empty(network, shape.batch, dtype=torch.long),
    }


def _unet(network: Any, shape: Shape) -> dict[str, Any]:
    config, b = network.config, shape.batch
    unknown = [name for name in ("encoder_hid_dim_type", "class_embed_type", "num_class_embeds") if config.get(name)]
    if unknown or config.addition_embed_type not in (None, "text_time"):
        what = unknown[0] if unknown else f"addition_embed_type={config.addition_embed_type!r}"
        raise NotImplementedError(f"the inputs of a {type(network).__name__} with {what} are not known")
    width = config.cross_attention_dim
    call: dict[str, Any] = {
        "sample": _latents(network, shape),
        "timestep": _empty(network, b, dtype=torch.long),
        "encoder_hidden_states": _empty(
            network, b, shape.text_tokens, width[0] if isinstance(width, (tuple, list)) else width
        ),
    }
    if config.time_cond_proj_dim is not None:
        call["timestep_cond"] = _empty(network, b, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        # Stable Diffusion XL: six numbers (sizes and crop) are embedded and joined to the pooled text.
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        call["added_cond_kwargs"] = {"text_embeds": _empty(network, b, pooled), "time_ids": _empty(network, b, 6)}
    return call


def _latents(network: Any, shape: Shape) -> Tensor:
    height, width = shape.height // shape.scale, shape.width // shape.scale
    return _empty(network, shape.batch, network.config.in_channels, height, width)


def _empty(network: nn.Module, *size: int, dtype: torch.dtype | None = None) -> Tensor:
    first = next(network.parameters())
    return torch.empty(size, device=first.device, dtype=dtype or first.dtype)


_BUILDERS: Mapping[type[Any], Callable[[Any, Shape], dict[str, Any]]] = {
    FluxTransformer2DModel: _flux,
    DiTTransformer2DModel: _dit,
    UNet2DConditionModel: _unet,
}
