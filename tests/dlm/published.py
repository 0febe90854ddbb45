"""Toy checkpoints in the published layouts of LLaDA and Dream, and what a network of plain tensors makes of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY = 96
LLADA: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_dropout": 0.0,
    "embedding_size": VOCABULARY,
    "eos_token_id": 81,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_device": "meta",
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 90,
    "max_sequence_length": 64,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "pad_token_id": 81,
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 5000.0,
    "scale_logits": False,
    "use_cache": False,
    "vocab_size": VOCABULARY,
    "weight_tying": False,
}
DREAM: dict[str, Any] = {
    "architectures": ["DreamModel"],
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "attention_dropout": 0.0,
    "bos_token_id": 82,
    "eos_token_id": 82,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "mask_token_id": 91,
    "max_position_embeddings": 64,
    "max_window_layers": 28,
    "model_type": "Dream",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 82,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}


def llada_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random parameters of the network that `config` describes, under the published names."""
    width, inner = config["d_model"], config["mlp_hidden_size"]
    keys = width // config["n_heads"] * config["n_kv_heads"]
    shapes = {"attn_norm": (width,), "ff_norm": (width,), "q_proj": (width, width), "attn_out": (width, width)}
    shapes |= {"k_proj": (keys, width), "v_proj": (keys, width)}
    shapes |= {"ff_proj": (inner, width), "up_proj": (inner, width), "ff_out": (width, inner)}
    named = {f"blocks.{i}.{name}": shape for i in range(config["n_layers"]) for name, shape in shapes.items()}
    named |= {"wte": (VOCABULARY, width), "ln_f": (width,), "ff_out": (VOCABULARY, width)}
    return _random({f"model.transformer.{name}.weight": shape for name, shape in named.items()})


def dream_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random parameters of the network that `config` describes, under the published names."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    for name, size in (("q", width), ("k", keys), ("v", keys)):
        layer |= {f"self_attn.{name}_proj.weight": (size, width), f"self_attn.{name}_proj.bias": (size,)}
    layer |= {"self_attn.o_proj.weight": (width, width), "mlp.down_proj.weight": (width, inner)}
    layer |= {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width)}
    count = config["num_hidden_layers"]
    named = {f"model.layers.{i}.{name}": shape for i in range(count) for name, shape in layer.items()}
    named |= {"model.embed_tokens.weight": (VOCABULARY, width), "model.norm.weight": (width,)}
    return _random(named | {"lm_head.weight": (VOCABULARY, width)})


def llada_logits(config: dict[str, Any], given: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits (batch, length, vocabulary) of the published architecture."""
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    x = given["model.transformer.wte.weight"][tokens]
    for i in range(config["n_layers"]):
        at = {name: given[f"model.transformer.blocks.{i}.{name}.weight"] for name in _LLADA_NAMES}
        h = _norm(x, at["attn_norm"], eps)
        q, k, v = (h @ at[f"{name}_proj"].T for name in "qkv")
        x = x + _attention(q, k, v, config["n_heads"], config["n_kv_heads"], theta) @ at["attn_out"].T
        h = _norm(x, at["ff_norm"], eps)
        x = x + (F.silu(h @ at["ff_proj"].T) * (h @ at["up_proj"].T)) @ at["ff_out"].T
    return _norm(x, given["model.transformer.ln_f.weight"], eps) @ given["model.transformer.ff_out.weight"].T


def dream_logits(config: dict[str, Any], given: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits (batch, length, vocabulary) of the published architecture, before they are shifted."""
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    x = given["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        at = {name.split(f"layers.{i}.")[1]: value for name, value in given.items() if f"layers.{i}." in name}
        h = _norm(x, at["input_layernorm.weight"], eps)
        q, k, v = (h @ at[f"self_attn.{n}_proj.weight"].T + at[f"self_attn.{n}_proj.bias"] for n in "qkv")
        x = x + _attention(q, k, v, heads, kv_heads, theta) @ at["self_attn.o_proj.weight"].T
        h = _norm(x, at["post_attention_layernorm.weight"], eps)
        gate, up = h @ at["mlp.gate_proj.weight"].T, h @ at["mlp.up_proj.weight"].T
        x = x + (F.silu(gate) * up) @ at["mlp.down_proj.weight"].T
    return _norm(x, given["model.norm.weight"], eps) @ given["lm_head.weight"].T


def write(
    folder: Path, config: dict[str, Any], given: dict[str, Tensor], kind: str = "safetensors", parts: int = 1
) -> None:
    """A checkpoint of one file, or of shards and their index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem, end = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names, where = sorted(given), {}
    for part in range(parts):
        file = f"{stem}.{end}" if parts == 1 else f"{stem}-{part + 1:05}-of-{parts:05}.{end}"
        held = {name: given[name] for name in names[part::parts]}
        where |= dict.fromkeys(held, file)
        if end == "safetensors":
            save_file(held, folder / file, metadata={"format": "pt"})
        else:
            torch.save(held, folder / file)
    if parts > 1:
        index = {"metadata": {}, "weight_map": where}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))


_LLADA_NAMES = ("attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")


def _random(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(5)
    # Norms lie around 1, biases around 0; large enough that each matters.
    return {
        name: torch.randn(shape, generator=made) * 0.3 + (1.0 if "norm" in name or "ln_f" in name else 0.0)
        for name, shape in shapes.items()
    }


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps))


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, theta: float) -> Tensor:
    """Everybody sees everybody; each key and value head serves heads / kv_heads query heads in a row."""
    batch, length, width = q.shape
    size = width // heads
    out = torch.empty(batch, length, width)
    for head in range(heads):
        own, shared = slice(head * size, (head + 1) * size), head * kv_heads // heads
        theirs = slice(shared * size, (shared + 1) * size)
        scores = _rotate(q[..., own], theta) @ _rotate(k[..., theirs], theta).transpose(1, 2) / math.sqrt(size)
        out[..., own] = scores.softmax(-1) @ v[..., theirs]
    return out


def _rotate(x: Tensor, theta: float) -> Tensor:
    """Dimension j and j + d/2 are one complex number, turned by position * theta^(-2j/d)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)
