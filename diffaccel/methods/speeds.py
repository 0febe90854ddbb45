"""Settings by one word: "slow", "medium", "fast", "ultra"."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

SPEEDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "slow": {"interval": 2, "order": 2, "warmup": 3, "last": True},
        "medium": {"interval": 3, "order": 2, "warmup": 3, "last": True},
        "fast": {"interval": 4, "order": 2, "warmup": 3, "last": True},
        "ultra": {"interval": 5, "order": 1, "warmup": 3, "last": True},
    }
)
