"""Configurations and names of published checkpoints in transformers' words; pure bookkeeping, nothing is read.

LLaDA is a Llama under other names, Dream a Qwen2 under the same names; both without a causal mask. What the native
class cannot stand for is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from transformers import LlamaConfig, Qwen2Config

# Field: (the published code's default, the only value a Llama can stand for).
_LLADA_FIELDS: Mapping[str, tuple[Any, Any]] = {
    "activation_type": ("swiglu", "silu"),
    "block_type": ("sequential", "llama"),
    "layer_norm_type": ("default", "rms"),
    "layer_norm_with_affine": (True, True),
    "block_group_size": (1, 1),
    "rope": (False, True),
    "alibi": (False, False),
    "attention_layer_norm": (False, False),
    "input_emb_norm": (False, False),
    "weight_tying": (True, False),
    "scale_logits": (False, False),
    "include_bias": (False, False),
    "include_qkv_bias": (False, False),
    "bias_for_layer_norm": (False, False),
}
_DREAM_FIELDS: Mapping[str, tuple[Any, Any]] = {
    "hidden_act": ("silu", "silu"),
    "use_sliding_window": (False, False),
    "use_mrope": (False, False),
    "rope_scaling": (None, None),
    "tie_word_embeddings": (False, False),
}
_LLADA_LAYER = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
_LLADA_TOP = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}  # ff_out is two things


def llada_config(config: Mapping[str, Any]) -> LlamaConfig:
    """The Llama of a published LLaDA configuration (its `configuration_llada.py`, whose defaults hold here, too).

    Raises:
        ValueError: an option that a Llama does not have, or a missing field.
    """
    _check_fields(config, _LLADA_FIELDS, "Llama")
    heads, width = _need(config, "n_heads"), _need(config, "d_model")
    kv_heads = config.get("n_kv_heads")
    if kv_heads is None:
        kv_heads = 1 if config.get("multi_query_attention") else heads
    return LlamaConfig(
        vocab_size=config.get("embedding_size") or _need(config, "vocab_size"),
        hidden_size=width,
        intermediate_size=config.get("mlp_hidden_size") or config.get("mlp_ratio", 4) * width,
        num_hidden_layers=_need(config, "n_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=config.get("max_sequence_length", 1024),
        rms_norm_eps=config.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))},
        tie_word_embeddings=False,
        is_causal=False,
        **_tokens(config),
    )


def dream_config(config: Mapping[str, Any]) -> Qwen2Config:
    """The Qwen2 of a published Dream configuration (its `configuration_dream.py`).

    Raises:
        ValueError: another model than Dream's, an option that a Qwen2 does not have, or a missing field.
    """
    if config.get("architectures") != ["DreamModel"]:
        raise ValueError(
            f"architectures is {config.get('architectures')}, not ['DreamModel']: models that only share Dream's "
            "configuration may predict other positions, so they are not loaded"
        )
    _check_fields(config, _DREAM_FIELDS, "Qwen2")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return Qwen2Config(
        **{name: _need(config, name) for name in names},
        num_key_value_heads=config.get("num_key_value_heads"),
        max_position_embeddings=config.get("max_position_embeddings", 32768),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))},
        tie_word_embeddings=False,
        is_causal=False,
        shift_logits=True,
        **_tokens(config),
    )


def llada_name(name: str) -> str:
    """The Llama name of a published LLaDA parameter; unknown names are given back unchanged."""
    if found := re.fullmatch(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.weight", name):
        inner = _LLADA_LAYER.get(found[2])
        return f"model.layers.{found[1]}.{inner}.weight" if inner else name
    if found := re.fullmatch(r"model\.transformer\.(\w+)\.weight", name):
        outer = _LLADA_TOP.get(found[1])
        return f"{outer}.weight" if outer else name
    return name


def _check_fields(config: Mapping[str, Any], fields: Mapping[str, tuple[Any, Any]], native: str) -> None:
    for field, (default, wanted) in fields.items():
        value = config.get(field, default)
        if (value or None) != (wanted or None):  # the published files write null for some that are off
            source = "" if field in config else " (the published code's default)"
            raise ValueError(f"{field} is {value!r}{source}, but a {native} can only stand for {wanted!r}")


def _need(config: Mapping[str, Any], field: str) -> int:
    if not isinstance(config.get(field), int) or config[field] < 1:
        raise ValueError(f"config.json gives no {field}, or none that is a positive whole number")
    return cast(int, config[field])


def _tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mask_token_id": config.get("mask_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
        "bos_token_id": config.get("bos_token_id"),
    }
