"""The cases that are compared: one way each to make the same pictures from the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import TaylorSeerCacheConfig
from table import LEVELS

from diffaccel import accelerate_pipeline

FEWER = "fewer steps"
INTERVALS = (3, 4, 5, 6, 7, 8)
WARMUP = 3

# diffusers' own TaylorSeer, with factors kept in float32: as it comes, on the sites of our sublayer level, and lite.
BUILT_IN: dict[str, dict[str, Any]] = {
    "diffusers, default": {},
    "diffusers, all sublayers": {
        "cache_identifiers": [
            r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
            r"single_transformer_blocks\.\d+\.proj_out",
        ],
        "skip_predict_identifiers": [r"single_transformer_blocks\.\d+\.(attn|proj_mlp|act_mlp)"],
    },
    "diffusers, lite": {"use_lite_mode": True},
}


@dataclass(frozen=True)
class Case:
    """One way to make pictures.

    Attributes:
        steps: steps of the full run that the pictures are compared with.
        family: `FEWER`, one of `LEVELS`, or a key of `BUILT_IN`.
        run: steps of this run; fewer than `steps` in the family `FEWER` only.
        interval: N; 0 where nothing is skipped.
        order: O.
        forecast: "taylor" or "newton".
    """

    steps: int
    family: str
    run: int
    interval: int = 0
    order: int = 0
    forecast: str = "taylor"

    @property
    def name(self) -> str:
        """A name that no other case has."""
        if self.family == FEWER:
            return f"{self.run} of {self.steps} steps"
        forecast = ", newton" if self.forecast == "newton" else ""
        return f"{self.family}, N={self.interval}, O={self.order}{forecast}, {self.steps} steps"

    @property
    def timed(self) -> Case:
        """The case whose time this one shares: Taylor and Newton differ by the values of their weights only."""
        return replace(self, forecast="taylor")

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[Any]:
        """The pipeline accelerated like this, and as it was before at the end."""
        try:
            if self.family in LEVELS:
                accelerate_pipeline(
                    pipe,
                    "taylorseer",
                    interval=self.interval,
                    order=self.order,
                    warmup=WARMUP,
                    level=self.family,
                    forecast=self.forecast,
                )
            elif self.family in BUILT_IN:
                pipe.transformer.enable_cache(
                    TaylorSeerCacheConfig(
                        cache_interval=self.interval,
                        max_order=self.order,
                        disable_cache_before_step=WARMUP,
                        taylor_factors_dtype=torch.float32,
                        **BUILT_IN[self.family],
                    )
                )
            yield pipe
        finally:
            if self.family in LEVELS and hasattr(pipe, "acceleration"):
                pipe.acceleration.remove()
            elif self.family in BUILT_IN and pipe.transformer.is_cache_enabled:
                pipe.transformer.disable_cache()


def full(steps: int) -> Case:
    """The run that all others of `steps` steps are compared with."""
    return Case(steps, FEWER, steps)


def accelerated(steps: int) -> list[Case]:
    """All accelerated cases of a run of `steps` steps."""
    cases = [Case(steps, level, steps, n, o) for level in LEVELS for o in (0, 1, 2) for n in INTERVALS]
    # At order 1 both forecasts are the line through the last two anchors.
    cases += [Case(steps, level, steps, n, 2, "newton") for level in ("sublayer", "model") for n in INTERVALS]
    cases += [Case(steps, "diffusers, default", steps, n, 1) for n in (3, 5, 8)]
    cases += [Case(steps, family, steps, n, o) for family in list(BUILT_IN)[1:] for o in (1, 2) for n in INTERVALS]
    return cases
