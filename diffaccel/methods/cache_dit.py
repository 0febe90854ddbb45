"""Settings of cache-dit (vipshop/cache-dit), by the names its documentation gives them, as a method of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffaccel.methods.checks import nearest
from diffaccel.methods.first_block import FirstBlock
from diffaccel.plan import Plan

# What cache-dit takes where a setting is left out.
_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "Fn_compute_blocks": 8,
        "Bn_compute_blocks": 0,
        "residual_diff_threshold": 0.08,
        "max_accumulated_residual_diff_threshold": None,
        "max_warmup_steps": 8,
        "warmup_interval": 1,
        "max_cached_steps": -1,
        "max_continuous_cached_steps": -1,
        "enable_separate_cfg": None,
        "cfg_compute_first": False,
        "cfg_diff_compute_separate": True,
        "num_inference_steps": None,
        "steps_computation_mask": None,
        "steps_computation_policy": "dynamic",
        "force_refresh_step_hint": None,
        "force_refresh_step_policy": None,
        "enable_taylorseer": None,
        "taylorseer_order": 1,
    }
)

# Settings that must have these values, and why. Guidance branches and the number of steps are found, whatever is said.
_NEEDED: Mapping[str, tuple[tuple[Any, ...], str]] = MappingProxyType(
    {
        "Fn_compute_blocks": ((1,), "first_block probes one block, cache-dit 8 unless told"),
        "Bn_compute_blocks": ((0,), "first_block computes no blocks after the forecast"),
        "max_accumulated_residual_diff_threshold": ((None,), "first_block adds up no changes"),
        "max_cached_steps": ((-1, None), "first_block limits skipped steps in a row only: max_continuous_cached_steps"),
        "cfg_diff_compute_separate": ((True,), "every guidance branch decides for itself"),
        "force_refresh_step_hint": ((None,), "give a steps_computation_mask with that step computed"),
    }
)


def from_cache_config(data: Mapping[str, Any]) -> FirstBlock:
    """The method that does what a file for cache-dit says: `DBCacheConfig` with one probed block.

    Args:
        data: the file's content, with the settings under `cache_config`.

    Raises:
        ValueError: an unknown setting, or one that cannot be had here.
    """
    if others := sorted(data.keys() - {"cache_config"}):
        raise ValueError(f"of cache-dit's files only cache_config is read, not {', '.join(others)}: leave the rest out")
    given = data["cache_config"]
    if not isinstance(given, Mapping):
        raise ValueError(f"cache_config must hold names and values, got {given!r}")
    for name in given:
        if name not in _DEFAULTS:
            known = ", ".join(_DEFAULTS)
            raise ValueError(f"cache_config has no setting {name!r}{nearest(str(name), _DEFAULTS)} It has {known}.")
    settings = {**_DEFAULTS, **given}
    for name, (values, why) in _NEEDED.items():
        if settings[name] not in values:
            told = f"{name}={settings[name]!r}" + ("" if name in given else ", which is meant where it is left out")
            raise ValueError(f"{told}: {why}; write {name}: {'null' if values[0] is None else values[0]}")
    order = settings["taylorseer_order"] if settings["enable_taylorseer"] or "taylorseer_order" in given else 0
    most = settings["max_continuous_cached_steps"]
    method = FirstBlock(
        threshold=settings["residual_diff_threshold"],
        warmup=max(1, _whole("max_warmup_steps", settings["max_warmup_steps"])),
        warmup_interval=settings["warmup_interval"],
        order=0 if settings["enable_taylorseer"] is False else order,
        max_skipped=None if most in (-1, None) else most,
    )
    return _masked(method, settings)


def _masked(method: FirstBlock, settings: Mapping[str, Any]) -> FirstBlock:
    """The method with a mask of steps, which takes the place of the warm-up."""
    mask, policy = settings["steps_computation_mask"], settings["steps_computation_policy"]
    if policy not in ("dynamic", "static"):
        raise ValueError(f"steps_computation_policy must be dynamic or static, got {policy!r}")
    if mask is None:
        if policy == "static":
            raise ValueError("steps_computation_policy: static needs a steps_computation_mask, such as [1, 1, 0, 1]")
        return method
    if not isinstance(mask, list) or not mask or any(cell not in (0, 1) for cell in mask):
        raise ValueError(f"steps_computation_mask must be a list of 0 and 1, one a step, got {mask!r}")
    plan = Plan((tuple(bool(cell) for cell in mask),))
    if policy == "static":
        return FirstBlock(math.inf, order=method.order, schedule=plan)
    return FirstBlock(method.threshold, order=method.order, max_skipped=method.max_skipped, schedule=plan)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
    return value
