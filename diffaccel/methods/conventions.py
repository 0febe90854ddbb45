"""Configurations written for diffusers' caches, as methods of ours that do the same. Imports no diffusers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from diffaccel.methods.first_block import FirstBlock
from diffaccel.methods.taylorseer import DIFFUSERS, TaylorSeer

logger = logging.getLogger("diffaccel")

# diffusers' default, float32, and the network's own: here nothing is rounded below the network's own dtype.
_FACTORS = ("torch.bfloat16", "torch.float32", "None")


def from_taylorseer_cache(config: Any) -> TaylorSeer:
    """The method that does what diffusers' `TaylorSeerCacheConfig` does.

    Lite mode is the same: the result of diffusers with `taylor_factors_dtype=torch.float32`, but for the order of
    float32 operations. Without it diffusers forecasts attention alone, and only in networks whose modules have certain
    names; ours forecasts attention and MLPs of all blocks.

    Raises:
        ValueError: what the configuration asks for cannot be done here.
    """
    for name in ("skip_predict_identifiers", "cache_identifiers"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name} chooses modules by their names, which differ between networks; diffaccel finds them by "
                'structure: leave it out and say TaylorSeer(level="sublayer"), "block" or "model" instead'
            )
    if str(config.taylor_factors_dtype) not in _FACTORS:
        raise ValueError(
            f"taylor_factors_dtype={config.taylor_factors_dtype} cannot be had: features are kept in the network's own "
            "dtype and summed in float32; leave it out"
        )
    if config.disable_cache_before_step < 1:
        raise ValueError("disable_cache_before_step must be at least 1: the first step has nothing to be forecast from")
    if not config.use_lite_mode:
        logger.warning(
            "TaylorSeerCacheConfig without use_lite_mode forecasts attention alone in diffusers, MLPs as well here, so "
            "skipped steps cost less and results differ; with use_lite_mode=True results are those of diffusers"
        )
    return TaylorSeer(
        interval=config.cache_interval,
        order=config.max_order,
        warmup=config.disable_cache_before_step,
        level="output" if config.use_lite_mode else "sublayer",
        schedule=DIFFUSERS,
        after=config.disable_cache_after_step,
    )


def from_first_block_cache(config: Any) -> FirstBlock:
    """The method that does what diffusers' `FirstBlockCacheConfig` does."""
    return FirstBlock(threshold=config.threshold)


CONVENTIONS: Mapping[str, Callable[[Any], TaylorSeer | FirstBlock]] = MappingProxyType(
    {"TaylorSeerCacheConfig": from_taylorseer_cache, "FirstBlockCacheConfig": from_first_block_cache}
)

# Of diffusers' other caches, what comes nearest.
_NEAREST: Mapping[str, str] = MappingProxyType(
    {
        "FasterCacheConfig": 'TaylorSeer(level="sublayer", order=1)',
        "MagCacheConfig": "FirstBlock(threshold=..., max_skipped=...)",
        "PyramidAttentionBroadcastConfig": 'TaylorSeer(level="sublayer", order=0)',
        "SeaCacheConfig": "FirstBlock(threshold=..., max_skipped=..., order=1)",
    }
)


def is_diffusers_config(method: object) -> bool:
    """Whether something is a configuration of one of diffusers' caches."""
    kind = type(method)
    return kind.__module__.partition(".")[0] == "diffusers" and kind.__name__.endswith("Config")


def translated(config: Any) -> TaylorSeer | FirstBlock:
    """The method that does what a configuration of diffusers does.

    Raises:
        ValueError: what it asks for cannot be done here; the message says what to use.
    """
    name = type(config).__name__
    if name not in CONVENTIONS:
        nearest = f"; nearest is {_NEAREST[name]}" if name in _NEAREST else ""
        raise ValueError(f"diffaccel has no {name}, it takes {' and '.join(CONVENTIONS)}{nearest}")
    return CONVENTIONS[name](config)
