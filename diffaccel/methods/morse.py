"""Morse: the network on a few steps, and a small trained one, its Dot, on the steps between, as a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from diffaccel.forecast import Forecaster, Hold
from diffaccel.morse.budget import dash_index, dash_steps, exchange, split
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.morse.ratio import Ratio
    from diffaccel.sites import Site

_BOUND = 2.5  # in the middle of what the paper recommends
_NUMBERS = {"lsd": 1.0, "dots_per_dash": 0.0, "bound": 1.0, "ratio": 0.0, "guided": 0.0, "max_gap": 0.0}


@dataclass(frozen=True)
class Morse:
    """Run the network, Dash, on some steps, and a Dot, which follows the sample from there, on all others.

    For pipelines with one denoiser. Call them with more steps than without: `pipe.acceleration.num_inference_steps`.

    Source: Li, Fan, Yao, "Morse: Dual-Sampling for Lossless Acceleration of Diffusion Models", ICML 2025.

    Attributes:
        dot: a `diffaccel.morse.MorseDot`, trained for this network (`diffaccel train-dot`), or its folder or hub id. A
            module of your own will do that has its `forward`, `attach` and `config`.
        lsd: the budget of a run, in latencies of one step of the network.
        dots_per_dash: Dot steps for each Dash step, on average, where there is no budget; with one, at most.
        bound: steps for one latency of Dash, from which dots_per_dash follows where it is not given; 2 to 3 is the
            paper's advice. None is 2.5, or half way to N where that is less.
        ratio: N, how many times faster Dot is than Dash; None measures it when the pipeline is accelerated, with the
            pipeline's call defaults (`diffaccel.morse.measure_n` does so with a call of your own).
        guided: for a Dot that was trained guided: the guidance scale. It then corrects the guided estimate, once,
            instead of that of each branch.
        max_gap: the longest t_s - t a Dot may bridge, in the network's time; Dash runs at longer ones.
        measured: what was measured, where it was.

    Raises:
        ValueError: a number out of range, or something that is no Dot.
    """

    level: ClassVar[str] = "network"
    order: ClassVar[int] = 0

    dot: Any = None
    lsd: float | None = None
    dots_per_dash: float | None = None
    bound: float | None = None
    ratio: float | None = None
    guided: float | None = None
    max_gap: float | None = None
    measured: Ratio | None = field(default=None, repr=False, compare=False)
    loaded: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, least in _NUMBERS.items():
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < least or (value == least and name in ("ratio", "max_gap")):
                above = "above" if name in ("ratio", "max_gap") else "of at least"
                raise ValueError(f"{name} must be a number {above} {least:g}, got {value!r}")
        if self.dot is not None and not isinstance(self.dot, str | Path) and not hasattr(self.dot, "attach"):
            raise ValueError(f"dot must be a MorseDot, its folder or its hub id, got {self.dot!r}")

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> Morse:
        """The defaults, changed by `options`."""
        return cls(**options)

    @property
    def n(self) -> float | None:
        """How many times faster Dot is than Dash: as given, or measured, if it was."""
        return self.ratio if self.measured is None else self.measured.n

    @property
    def ready(self) -> Any:
        """The Dot itself. Raises ValueError before the method was given to a pipeline."""
        if self.loaded is None:
            raise ValueError("Morse has no Dot yet: accelerate_pipeline(pipe, ...) attaches it")
        return self.loaded

    @property
    def num_inference_steps(self) -> int | None:
        """The number of steps that fills the budget `lsd`; None without a budget."""
        return None if self.lsd is None else sum(split(self.lsd, self._n(), self._dots_per_dash()))

    def calibrated(self, pipe: Any) -> Morse:
        """With its Dot loaded and attached to the pipeline's network, and N measured where it is needed.

        Raises:
            ValueError: no Dot, one for another network, or for another kind of scheduler; a pipeline with two
                denoisers, with offloaded weights, or with a scheduler that asks about a time twice; a budget or a bound
                that cannot be had.
            OSError: there is no such Dot.
        """
        from diffaccel.morse.attaching import check_pipeline, loaded

        network = check_pipeline(pipe)
        found = replace(self, loaded=loaded(self.dot, network, pipe.scheduler, self.guided), measured=None)
        if self.ratio is None and (self.lsd is not None or self.dots_per_dash is None):
            from diffaccel.morse.attaching import measured

            found = replace(found, measured=measured(pipe, found.loaded))
        found._check_budget()
        return found

    def for_network(self, name: str) -> Morse:
        """The same: this method is for pipelines with one denoiser."""
        return self

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """One row, True where Dash runs. Raises ValueError if no run of so many steps meets the budget."""
        if self.lsd is None:
            k_dash = max(1, _rounded(steps / (1 + self._dots_per_dash())))
        elif steps == self.num_inference_steps:
            k_dash = split(self.lsd, self._n(), self._dots_per_dash())[0]
        else:
            k_dash = self._dash_steps(self.lsd, steps)
        return Plan.at(dash_index(k_dash, steps - k_dash), steps)

    def forecaster(self, site: Site, steps: int) -> Forecaster:
        """Only how many Dash steps are kept: what is between them is Dot's."""
        return Hold(self.order)

    def _dash_steps(self, budget: float, steps: int) -> int:
        n = self._n()
        if not 1 <= (k_dash := _rounded(dash_steps(budget, steps, n))) <= steps:
            raise ValueError(
                f"no run of {steps} steps costs {budget:g} LSD with a Dot that is N = {n:.3g} times faster than Dash: "
                f"call the pipeline with num_inference_steps={self.num_inference_steps} "
                "(pipe.acceleration.num_inference_steps; where strength or the like leaves out a part of the steps, so "
                "many are to be left), or give dots_per_dash instead of lsd"
            )
        return k_dash

    def _dots_per_dash(self) -> float:
        """Dot steps for each Dash step: as given, or those that have the bound."""
        if self.dots_per_dash is not None:
            return self.dots_per_dash
        n = self._n()
        # The paper's advice is 2 to 3; a Dot that is not much faster than Dash cannot have it.
        bound = min(_BOUND, (1 + n) / 2) if self.bound is None else self.bound
        return float(exchange(n, 1, bound)[1])

    def _n(self) -> float:
        if self.n is None:
            raise ValueError("N is not known yet: accelerate_pipeline(pipe, ...) measures it, or give ratio")
        return self.n

    def _check_budget(self) -> None:
        """Raise ValueError if the budget or the bound cannot be had with this N."""
        if self.lsd is not None:
            dash_steps(self.lsd, 1, self._n())
        if self.lsd is not None or self.dots_per_dash is None:
            self._dots_per_dash()


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)
