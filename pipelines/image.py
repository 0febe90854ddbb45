"""Text-to-image pipelines of diffusers behind one call surface: `load`, `generate`, `denoising_steps`.

Each picture has a generator of its own, so that a batch equals its single runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from diffaccel.denoisers import denoisers
from diffaccel.pipelines.source import call_defaults, locate


def pipeline_class(index: Mapping[str, Any]) -> type[Any]:
    """The class a `model_index.json` names. Raises ValueError if diffusers has none of that name."""
    name = index.get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not isinstance(kind, type):
        raise ValueError(
            f"diffusers {diffusers.__version__} has no pipeline class {name!r}: load it yourself, from Python"
        )
    return kind


def load(model: str = "flux-digits", dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
    """A pipeline by bundled name, folder or hub id, ready to run on `device`.

    Raises:
        ValueError: see `locate`.
        OSError: it cannot be loaded.
    """
    source = locate(model)
    try:
        pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype)
    except Exception as error:
        raise OSError(f"cannot load {model}: {error}") from error
    return pipe.to(device)


def denoiser(pipe: Any) -> Any:
    """The network a pipeline calls at every step, the first if it has two."""
    return next(iter(denoisers(pipe).values()))


def denoising_steps(kind: type[Any], defaults: Mapping[str, Any], steps: int | None = None) -> int:
    """Steps of a run of the pipeline class `kind`: those asked for, its call defaults', or the class's own."""
    return int(steps or defaults.get("num_inference_steps") or _default(kind, "num_inference_steps") or 50)


def text_tokens(kind: type[Any], defaults: Mapping[str, Any]) -> int:
    """Tokens of a prompt: the pipeline's `max_sequence_length`, or the 77 of CLIP where it does not name one."""
    return int(defaults.get("max_sequence_length") or _default(kind, "max_sequence_length") or 77)


def check_arguments(kind: type[Any], names: Sequence[str]) -> None:
    """Raise ValueError if a call of the pipeline class `kind` takes no argument of one of these names."""
    accepted = _parameters(kind)
    if not {"prompt", "class_labels"} & set(accepted) or "generator" not in accepted:
        raise ValueError(f"{kind.__name__} does not make pictures from prompts or class labels alone")
    for name in names:
        if name not in accepted:
            raise ValueError(f"{kind.__name__} takes no {name}: leave it out")


def guidance_arguments(kind: type[Any], config: Mapping[str, Any], scale: float | None) -> dict[str, Any]:
    """How a pipeline of class `kind`, whose denoiser has this `config`, is told its guidance scale; {} for None.

    Models distilled with an embedded guidance take `guidance_scale`; those that are not run a second, negative branch:
    pipelines of Flux's and Qwen's kind call its scale `true_cfg_scale`.

    Raises:
        ValueError: the pipeline knows no guidance.
    """
    if scale is None:
        return {}
    if _has_negative_branch(kind, config):
        return {"true_cfg_scale": scale, "negative_prompt": ""}
    check_arguments(kind, ["guidance_scale"])
    return {"guidance_scale": scale}


def samples_per_picture(
    kind: type[Any], config: Mapping[str, Any], defaults: Mapping[str, Any], scale: float | None = None
) -> int:
    """Samples the denoiser sees a picture and step: 2 with classifier-free guidance, else 1. Arguments as above."""
    if _has_negative_branch(kind, config):
        scale = defaults.get("true_cfg_scale", 1) if scale is None else scale
    elif config.get("guidance_embeds") or config.get("time_cond_proj_dim"):
        return 1
    elif scale is None:
        scale = defaults.get("guidance_scale", _default(kind, "guidance_scale"))
    return 2 if scale is not None and scale > 1 else 1


def _has_negative_branch(kind: type[Any], config: Mapping[str, Any]) -> bool:
    return "true_cfg_scale" in _parameters(kind) and not config.get("guidance_embeds")


def call_arguments(pipe: Any, steps: int | None = None, guidance: float | None = None, **more: Any) -> dict[str, Any]:
    """Arguments of a call besides the prompts: those given, and the pipeline's call defaults. See `pictures`.

    Raises:
        ValueError: the pipeline's call takes no such argument.
    """
    given = {name: value for name, value in {"num_inference_steps": steps, **more}.items() if value is not None}
    given |= guidance_arguments(type(pipe), denoiser(pipe).config, guidance)
    check_arguments(type(pipe), list(given))
    return call_defaults(str(pipe.name_or_path)) | given


def pictures(
    pipe: Any,
    prompts: Sequence[str],
    seeds: int | Sequence[int] = 0,
    steps: int | None = None,
    guidance: float | None = None,
    *,
    batch: int | None = None,
    **more: Any,
) -> Tensor:
    """Pictures of prompts in 0..1, float32 [n, 3, height, width] on the CPU.

    Args:
        pipe: a diffusers text-to-image or class-to-image pipeline, accelerated or not.
        prompts: one a picture; for class-conditional pipelines names or numbers of classes.
        seeds: one a picture, or one for all.
        steps: denoising steps; None leaves it to the pipeline, as with all that follows.
        guidance: scale of classifier-free or embedded guidance, whichever the model has.
        batch: pictures a call of the pipeline makes; None makes all in one.
        **more: further arguments of the pipeline's call, such as `height` and `width`; None is left out.

    Raises:
        ValueError: no prompt, a number of seeds that does not fit, an unknown class, or an argument the pipeline's call
            does not take.
    """
    seeds = [seeds] * len(prompts) if isinstance(seeds, int) else seeds
    if not prompts or len(seeds) != len(prompts):
        raise ValueError(f"a picture needs a prompt and a seed: got {len(prompts)} prompts and {len(seeds)} seeds")
    arguments, size = call_arguments(pipe, steps, guidance, **more), batch or len(prompts)
    parts = []
    for start in range(0, len(prompts), size):
        chunk = _per_picture(pipe, prompts[start : start + size], arguments)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + size]]
        parts.append(pipe(**chunk, generator=generators, output_type="np").images)
    return torch.from_numpy(np.concatenate(parts)).float().permute(0, 3, 1, 2).contiguous()


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: int | Sequence[int] = 0,
    steps: int | None = None,
    guidance: float | None = None,
    *,
    batch: int | None = None,
    **more: Any,
) -> list[Image.Image]:
    """Pictures of prompts, see `pictures`."""
    return to_pil(pictures(pipe, prompts, seeds, steps, guidance, batch=batch, **more))


def to_pil(images: Tensor) -> list[Image.Image]:
    """Pictures [n, 3, height, width] in 0..1 as Pillow has them, rounded as diffusers rounds."""
    converted: list[Image.Image] = VaeImageProcessor.numpy_to_pil(images.permute(0, 2, 3, 1).numpy())
    return converted


def _per_picture(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the prompts, or the numbers of classes, and a negative prompt for each of them."""
    result = dict(arguments)
    if "prompt" not in _parameters(type(pipe)):
        return result | {"class_labels": [_class_number(pipe, name) for name in prompts]}
    if isinstance(result.get("negative_prompt"), str):
        result["negative_prompt"] = [result["negative_prompt"]] * len(prompts)
    return result | {"prompt": list(prompts)}


def _class_number(pipe: Any, name: str) -> int:
    labels: Mapping[str, int] = getattr(pipe, "labels", None) or {}
    if not name.strip().isdecimal() and name not in labels:
        raise ValueError(
            f"{type(pipe).__name__} knows no class {name!r}: give the number of a class, or its exact name"
        )
    return int(labels.get(name, name))


def _default(kind: type[Any], name: str) -> Any:
    """The default of an argument of the pipeline's call; None if it has none, or takes no such argument."""
    parameter = _parameters(kind).get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _parameters(kind: type[Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.__call__).parameters
