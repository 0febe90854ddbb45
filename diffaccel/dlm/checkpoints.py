"""Published checkpoints of diffusion language models as transformers' own classes. No code of a checkpoint is ever run.

LLaDA-8B and LLaDA-1.5 (arXiv 2502.09992, `model_type` "llada") are Llamas under other names, Dream, DiffuCoder and
Dream-Coder (arXiv 2508.15487, `model_type` "Dream") are Qwen2 under the same names; both without a causal mask. So
`config.is_causal = False` and a change of names give every attention implementation, cache and quantisation there is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from diffaccel.dlm.layouts import dream_config, llada_config, llada_name
from diffaccel.dlm.weights import Source, fill

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_SHIFT = "shift_logits"  # field of a native config.json: position p is predicted by row p - 1


class _Layout(NamedTuple):
    model: Callable[[Any], PreTrainedModel]
    config: Callable[[Mapping[str, Any]], Any]
    name: Callable[[str], str]


_LAYOUTS: Mapping[str, _Layout] = {
    "llada": _Layout(LlamaForCausalLM, llada_config, llada_name),
    "Dream": _Layout(Qwen2ForCausalLM, dream_config, str),
}


@dataclass(frozen=True)
class Loaded:
    """A diffusion language model, ready for decoding.

    Attributes:
        model: a native causal language model whose positions all see each other, in eval mode.
        tokenizer: None if the folder has none.
        mask_token_id: the token that marks what is to be filled in.
        eos_token_id: the token that ends a text; None if there is none.
        shift: position p is predicted by row p - 1 (Dream), not by row p (LLaDA).
    """

    model: PreTrainedModel
    tokenizer: Any | None
    mask_token_id: int
    eos_token_id: int | None
    shift: bool


def load(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    *,
    local_files_only: bool = False,
) -> Loaded:
    """LLaDA, Dream or a native transformers folder, told apart by its config.json.

    Args:
        path: a folder or a hub id.
        dtype: of the weights; None keeps each as it is stored.
        device: where the weights go; None is the CPU.
        local_files_only: never ask the hub, take what was downloaded before.

    Raises:
        ValueError: a model that has no native counterpart, or one that is not trained for this kind of decoding.
        OSError: the folder is not there or not complete, or the hub did not give the files.
    """
    source = Source.find(path, local_files_only)
    config = source.config()
    kind = config.get("model_type")
    if kind in _LAYOUTS:
        return _published(source, config, dtype, device)
    return _native(source, config, dtype, device)


def from_llada(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    *,
    local_files_only: bool = False,
) -> Loaded:
    """A checkpoint in the layout of LLaDA-8B and LLaDA-1.5 as a Llama; arguments and errors as in `load`.

    The published code rotates queries and keys in float32, Llama in the dtype of the weights: in float32 the logits
    are the same, in bfloat16 they differ by rounding.
    """
    source = Source.find(path, local_files_only)
    return _published(source, _expect(source, "llada"), dtype, device)


def from_dream(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    *,
    local_files_only: bool = False,
) -> Loaded:
    """A checkpoint in the layout of Dream, DiffuCoder and Dream-Coder as a Qwen2; arguments and errors as in `load`."""
    source = Source.find(path, local_files_only)
    return _published(source, _expect(source, "Dream"), dtype, device)


def _native(source: Source, config: dict[str, Any], dtype: Any, device: Any) -> Loaded:
    kind = config.get("model_type")
    if str(kind).startswith(("llada2", "LLaDA2")):
        raise ValueError(f"{source} is LLaDA2: it runs in diffusers' LLaDA2Pipeline, which can be accelerated as such")
    if "auto_map" in config or kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{source} holds model_type {kind!r}, which needs code of its own that is never run here. Supported are "
            "LLaDA-8B and LLaDA-1.5, Dream, DiffuCoder and Dream-Coder, and folders of native transformers models"
        )
    if config.get("is_causal", True):
        raise ValueError(
            f"{source} holds a causal {kind} model, which cannot fill in masked positions from both sides. If it was "
            'trained without a causal mask, write "is_causal": false into its config.json'
        )
    native = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    words = _words(source, config, native.vocab_size)
    source.weights()
    model = AutoModelForCausalLM.from_pretrained(
        source.folder, config=native, dtype=dtype or "auto", trust_remote_code=False, local_files_only=True
    )
    return Loaded(model.to(device or "cpu"), *words, bool(config.get(_SHIFT, False)))


def _published(source: Source, config: dict[str, Any], dtype: Any, device: Any) -> Loaded:
    layout = _LAYOUTS[config["model_type"]]
    try:
        native = layout.config(config)
    except ValueError as error:
        raise ValueError(f"{source} cannot be loaded: {error}") from error
    with init_empty_weights(include_buffers=False):
        model = layout.model(native)
    words = _words(source, config, native.vocab_size)
    fill(model, source, layout.name, dtype, device)
    return Loaded(model.to(device or "cpu").eval(), *words, bool(getattr(native, _SHIFT, False)))


def _words(source: Source, config: dict[str, Any], vocabulary: int) -> tuple[Any | None, int, int | None]:
    """The tokenizer, the mask token and the end token."""
    tokenizer = _tokenizer(source.folder)
    mask, eos = config.get("mask_token_id"), config.get("eos_token_id")
    mask = getattr(tokenizer, "mask_token_id", None) if mask is None else mask
    eos = getattr(tokenizer, "eos_token_id", None) if eos is None else eos
    if mask is None:
        raise ValueError(f'{source} names no mask token: write "mask_token_id" into its config.json')
    if not 0 <= mask < vocabulary:
        raise ValueError(f"mask_token_id {mask} of {source} is outside the vocabulary of {vocabulary} tokens")
    return tokenizer, int(mask), eos[0] if isinstance(eos, list) else eos


def _tokenizer(folder: Path) -> Any | None:
    if not any((folder / name).is_file() for name in _TOKENIZER):
        return None
    settings = folder / "tokenizer_config.json"
    kind = json.loads(settings.read_text()).get("tokenizer_class") if settings.is_file() else None
    # Dream's tokenizer is Qwen2's under a name of its own.
    maker = Qwen2Tokenizer if kind == "DreamTokenizer" else AutoTokenizer
    return maker.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _expect(source: Source, kind: str) -> dict[str, Any]:
    config = source.config()
    if config.get("model_type") != kind:
        raise ValueError(f"{source} has model_type {config.get('model_type')!r}, not {kind!r}: use load()")
    return config
