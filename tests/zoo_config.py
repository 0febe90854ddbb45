"""Toy configurations: the `__init__` arguments of any denoiser class, shrunk by the role their names and defaults tell.

Equalities between defaults are kept: what equals heads times head width in the original does so in the toy.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

HEADS, HEAD_DIM, DEPTH = 2, 16, 2
INNER = HEADS * HEAD_DIM
GROUPS = 4  # of group norms

Config = dict[str, Any]

# Names of the number of attention heads and of their width, main stream first.
_HEADS = re.compile(
    r"^(audio_|text_|ctrl_|motion_|face_encoder_|block_)?(num_)?(cross_)?(attention_)?n?_?heads?$|^dit_heads$"
)
_KEY_HEADS = re.compile(r"(num_key_value|n_kv|num_kv|text_num_key_value).*heads$|^num_key_value_attention_heads$")
_HEAD_DIM = re.compile(r"^(audio_|cross_|linear_)?(attention_)?head_dim$")
_DEPTH = re.compile(r"^(\w*_)?n?(num_)?(\w*layers|\w*blocks|depth)$|^layers_per_block$")
_AXES = re.compile(r"^(axes_dims?(_rope|_a)?|rope_(axes_)?dim(_list)?|mrope_section)$")
_FEED_FORWARD = re.compile(r"(ffn?_dim(_a)?|ffn_hidden_size|intermediate_(size|dim)|approximator_hidden_dim)$")
_CONTEXT = re.compile(
    r"^(joint_attention_dim|text_(embed_|emb_|hidden_|in_|encoder_)?(2_)?dim(_t5)?|caption_channels|cap_feat_dim|"
    r"cross_attention_dim(_t5)?|cross_attention_input_dim|context_in_dim|in_text_dim2?|encoder_hid(den)?_(dim|size)|"
    r"text_embed_2_dim|pooled_projection_dim|image_(embed_)?dim|text_embed_dim_t5|conditioning_dim|llm_features_dim|"
    r"crossattn_proj_in_channels|encoder_hidden_states_channels|dit_text_dim|cond_token_dim|global_cond_dim|"
    r"global_states_input_dim|clip_\w+_in_channels|cond_embed_dim|clip_embd|c_cond|embedding_dim|siglip_feat_dim|"
    r"image_proj_dim|clip_img_dim)$"
)
_CODES = re.compile(r"(vocab|codebook)_size$|^num_vector_embeds$")
_POSITIONS = re.compile(r"^(pos_embed_max_size|sample_(size|height|width))$")
_LENGTHS = re.compile(r"^(max_text_seq_length|num_text_tokens|text_len(_t5)?|num_embeddings)$")
_TIME = re.compile(
    r"^(time_(embed_|embedding_|step_)?dim(_a)?|ofs_embed_dim|timestep_embed_dim|freq_dim|condition_dim)$"
)
# What has to be given though its default is None.
_MISSING = {"in_channels": 4, "out_channels": 4, "patch_size": 2, "sample_size": 8, "num_kv_heads": HEADS}


def toy(kind: type[Any], hints: Mapping[str, Any] | None = None) -> Config:
    """Arguments for a tiny network of class `kind`; `hints` have the last word."""
    defaults = {
        name: parameter.default
        for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]
        if parameter.default is not parameter.empty
    }
    levels = defaults.get("block_out_channels", defaults.get("c_hidden"))
    config = unet(defaults) if isinstance(levels, list | tuple) else transformer(defaults)
    return {**config, **(hints or {})}


def transformer(defaults: Config) -> Config:
    """A transformer of `DEPTH` blocks of each sort and of width `INNER`."""
    heads = {n: _heads(n, v) for n, v in defaults.items() if _HEADS.match(n) or _KEY_HEADS.match(n)}
    config: Config = {name: value for name, value in heads.items() if value is not None}
    config |= {name: HEAD_DIM for name in defaults if _HEAD_DIM.match(name)}
    widths = _widths(defaults)
    for name, value in defaults.items():
        if name in config:
            continue
        if value is None:
            if name in _MISSING and (name != "out_channels" or defaults.get("in_channels") is None):
                config[name] = _MISSING[name]
            continue
        for rule in (_known_width(widths), _by_role(defaults)):
            new = rule(name, value)
            if new is not None:
                config[name] = new
                break
    return config


def _heads(name: str, value: Any) -> Any:
    if isinstance(value, int):
        return HEADS
    return type(value)(HEADS if v > 0 else v for v in value) if isinstance(value, list | tuple) else None


def _widths(defaults: Config) -> dict[int, int]:
    """What is a width of a stream in the original: heads times head width, or a parameter that says so."""
    heads = [v for n, v in defaults.items() if _HEADS.match(n) and isinstance(v, int)]
    head_dims = [v for n, v in defaults.items() if _HEAD_DIM.match(n) and isinstance(v, int)]
    widths = {h * d: INNER for h in heads for d in head_dims}
    named = ("hidden_size", "dim", "model_dim", "embed_dim", "dit_dim", "token_dim", "c", "motion_style_dim")
    return widths | {defaults[n]: INNER for n in named if isinstance(defaults.get(n), int)}


def _known_width(widths: dict[int, int]) -> Callable[[str, Any], Any]:
    def rule(name: str, value: Any) -> Any:
        number = isinstance(value, int) and not isinstance(value, bool) and value > 8
        return widths.get(value) if number else None

    return rule


def _by_role(defaults: Config) -> Callable[[str, Any], Any]:
    """The rule for what is no width of a stream: depths, axes of rotary embeddings, widths of conditions, tables."""
    contexts = iter(range(24, 400, 4))  # widths of conditions, all different so that errors tell them apart
    known: dict[int, int] = {}
    head = _head_dim(defaults)

    def rule(name: str, value: Any) -> Any:
        if isinstance(value, bool):
            return None
        if _AXES.match(name):
            return _axes(value, head)
        if isinstance(value, int) and _DEPTH.match(name):
            return value and DEPTH
        if isinstance(value, int) and _FEED_FORWARD.search(name):
            return 2 * INNER
        if isinstance(value, int) and _CONTEXT.match(name):
            return known.setdefault(value, next(contexts))
        if isinstance(value, int) and _CODES.search(name):
            return 32
        if isinstance(value, int) and _TIME.match(name):
            return INNER
        if isinstance(value, int) and _LENGTHS.match(name):
            return 6
        if name == "sample_frames":
            return 5
        if name.endswith("token_id"):
            return 0
        if isinstance(value, int) and _POSITIONS.match(name):
            return min(value, 8)
        if name.endswith(("_layers", "layer_ids")) and isinstance(value, list | tuple) and value:
            return type(value)([0])
        return None

    return rule


def _head_dim(defaults: Config) -> int:
    """Width of a head in the original."""
    named = next((v for n, v in defaults.items() if _HEAD_DIM.match(n) and isinstance(v, int)), None)
    if named is not None:
        return int(named)
    heads = next((v for n, v in defaults.items() if _HEADS.match(n) and isinstance(v, int)), None)
    width = next((defaults[n] for n in ("hidden_size", "dim", "model_dim") if isinstance(defaults.get(n), int)), None)
    return width // heads if heads and width else 0


def _axes(value: Any, head: int) -> Any:
    """Even axes that fill the toy's head as those of the original fill its own."""
    total = HEAD_DIM * sum(value) // head if head else HEAD_DIM
    if total > sum(value) or total % 2:
        return value
    even = [max(2, 2 * round(total * axis / sum(value) / 2)) for axis in value]
    while sum(even) != total:
        step = 2 if sum(even) < total else -2
        even[even.index(min(even) if step > 0 else max(even))] += step
    return type(value)(even)


def unet(defaults: Config) -> Config:
    """A UNet with one layer a level and a few channels, of as many levels as the original."""
    # Where the number of groups is fixed in the code it is 32.
    unit = 16 if any(name.endswith("groups") for name in defaults) else 32
    config: Config = {}
    for name, value in defaults.items():
        number = isinstance(value, int) and not isinstance(value, bool)
        many = isinstance(value, list | tuple)
        if name in ("block_out_channels", "c_hidden"):
            config[name] = type(value)(unit * (1 + (i > 0)) for i in range(len(value)))
        elif name.endswith("groups") and number:
            config[name] = GROUPS
        elif name == "nhead" or _HEADS.match(name) or name == "addition_embed_type_num_heads":
            config[name] = _heads(name, value)
        elif _HEAD_DIM.match(name) and number:
            config[name] = min(value, 8)
        elif _TIME.match(name) and number:
            config[name] = INNER
        elif (_DEPTH.match(name) or name.endswith("num_layers_per_block")) and (number or many):
            config[name] = 1 if number else type(value)(1 for _ in value)
        elif _CONTEXT.match(name) and number:
            config[name] = 24
    return {name: value for name, value in config.items() if value is not None}
