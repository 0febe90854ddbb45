"""What is compared in `morse.py`: solvers of a few steps, caches, and Dots under these solvers.

A line in `PLAIN` or `CACHED` is all it takes to add to the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffaccel.pipelines import bundled


class UniPC(UniPCMultistepScheduler):
    """UniPC that may be given a generator, as `DDPMPipeline` does to every scheduler; it draws no noise."""

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = True
    ) -> Any:
        """One step, see the base class."""
        return super().step(model_output, timestep, sample, return_dict)


_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SOLVERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "ddim-trailing": (DDIMScheduler, {"timestep_spacing": "trailing"}),
    "dpm++2m": (DPMSolverMultistepScheduler, {}),
    "dpm++2m-trailing": (DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}),
    "dpm++2m-lu": (DPMSolverMultistepScheduler, {"use_lu_lambdas": True}),
    "unipc": (UniPC, {}),
    "unipc-trailing": (UniPC, {"timestep_spacing": "trailing"}),
    "unipc-lu": (UniPC, {"use_lu_lambdas": True}),
    "euler": (FlowMatchEulerDiscreteScheduler, {}),
    "flow-dpm++2m": (DPMSolverMultistepScheduler, _FLOW),
    "flow-unipc": (UniPC, _FLOW),
}
"""By name, a class of diffusers and what it is given beside the schedule of the pipeline.

Spacings are the pipeline's own, "leading", unless the name says another one. `FluxPipeline` hands a scheduler its
sigmas, which `FlowMatchHeunDiscreteScheduler` does not take, so Heun's method is not among them.
"""


@dataclass(frozen=True)
class Cell:
    """One way to make the pictures.

    Attributes:
        solver: a name in `SOLVERS`.
        steps: of the scheduler.
        method: an acceleration without training, as the command line spells it; "" for none.
        dot: label of a Dot; "" for none. `ZERO` are Dots that say nothing.
        k_dash: Dash steps of a run with a Dot.
    """

    solver: str
    steps: int
    method: str = ""
    dot: str = ""
    k_dash: int = 0

    @property
    def family(self) -> str:
        """What the cells of one curve have in common."""
        plan = f"{'' if not self.dot else f' {(self.steps - self.k_dash) / self.k_dash:.2g} a Dash step'}"
        cache = f" {self.steps} steps {self.method.partition(':')[0]}" if self.method else ""
        return f"{self.solver}{cache}{f' + {self.dot}' if self.dot else ''}{plan}"

    @property
    def name(self) -> str:
        """Such as `ddim 6`, `ddim 28 fitted:computed=8` or `ddim small 3+6`."""
        if self.dot:
            return f"{self.solver} {self.dot} {self.k_dash}+{self.k_dot}"
        return f"{self.solver} {self.steps}" + (f" {self.method}" if self.method else "")

    @property
    def k_dot(self) -> int:
        """Dot steps."""
        return self.steps - self.k_dash if self.dot else 0

    @property
    def kind(self) -> str:
        """ "plain", "cache", "zero" or "dot"."""
        return ("zero" if self.dot in ZERO else "dot") if self.dot else "cache" if self.method else "plain"

    def scheduler(self, shipped: Any) -> Any:
        """The solver on the schedule of a pipeline's own scheduler."""
        kind, more = SOLVERS[self.solver]
        return kind.from_config(shipped.config, **more)

    def as_dict(self) -> dict[str, Any]:
        """The cell as plain data."""
        extra = {"name": self.name, "family": self.family, "kind": self.kind, "k_dot": self.k_dot}
        return {**asdict(self), **extra}


ZERO: Mapping[str, Mapping[str, Any]] = {"zero": {"base": "hold"}, "zero-line": {"base": "taylor"}}
"""Dots that were not trained: what is left of Morse if Dot says nothing, by the base it would correct."""

_STEPS = (3, 4, 5, 6, 8, 10, 14)
FIRST = {"ddpm-digits": "ddim", "sd-digits": "ddim", "flux-digits": "euler"}
"""The solver of first order, which speed-ups are told over."""
PLAIN: Mapping[str, Mapping[str, Sequence[int]]] = {
    "ddpm-digits": {
        "ddim": (*_STEPS, 20),
        "dpm++2m": (3, 4, 5, 6, 8),
        "dpm++2m-trailing": (8, 10, 14),
        "unipc": (4, 6),
    },
    "sd-digits": {"ddim": (*_STEPS, 20), "dpm++2m": (3, 4, 5, 6, 8), "dpm++2m-trailing": (8, 10, 14), "unipc": (4, 6)},
    "flux-digits": {"euler": (*_STEPS, 20), "flow-dpm++2m": _STEPS, "flow-unipc": (4, 6)},
}
"""Solvers and their steps."""
CACHED: Mapping[str, tuple[tuple[str, int], Sequence[str]]] = {
    "ddpm-digits": (("ddim", 28), ("taylorseer:interval=6,order=1", "taylorseer:interval=4,order=1")),
    "sd-digits": (
        ("ddim", 28),
        ("fitted:computed=6", "fitted:computed=8", "taylorseer:interval=4,order=1", "hyca:interval=6"),
    ),
    "flux-digits": (("euler", 28), ("fitted:computed=6", "fitted:computed=8", "taylorseer:interval=4,order=1")),
}
"""The full run, and what of it is skipped."""
PLANS = ((2, 4), (3, 6), (4, 8), (6, 12), (3, 3), (4, 4), (6, 6))
"""Dash and Dot steps of runs with a Dot."""
BETTER_SOLVER = {"ddpm-digits": "dpm++2m", "sd-digits": "dpm++2m", "flux-digits": "flow-dpm++2m"}
"""The second-order solver that Dots are tried under, too."""
ZERO_PLANS = ((3, 6), (4, 8))


def reference(pipeline: str, steps: int) -> Cell:
    """The run that all others are compared with; second order, whose error at so many steps is the smaller one."""
    return Cell("flow-dpm++2m" if pipeline == "flux-digits" else "dpm++2m-trailing", steps)


def cells(
    pipeline: str,
    dots: Mapping[str, str],
    plans: Sequence[tuple[int, int]] = PLANS,
    solvers: Sequence[str] | None = None,
    zero: bool = True,
) -> list[Cell]:
    """All cells of a pipeline with Dots of these labels.

    Args:
        pipeline: its bundled name.
        dots: by label, the class of the scheduler a Dot was trained with.
        plans: Dash and Dot steps.
        solvers: those that Dots are run under; unless given `BETTER_SOLVER` and, but for Dots that were trained for
            that, the first-order one.
        zero: with the Dots that say nothing.
    """
    first, (full, methods) = FIRST[pipeline], CACHED[pipeline]
    found = [Cell(solver, steps) for solver, counts in PLAIN[pipeline].items() for steps in counts]
    found += [Cell(*full, method) for method in methods]
    found += [Cell(first, k + d, dot=dot, k_dash=k) for dot in (ZERO if zero else ()) for k, d in ZERO_PLANS]
    for dot, trained in dots.items():
        better = BETTER_SOLVER[pipeline]
        under = solvers or ((better,) if trained == SOLVERS[better][0].__name__ else (first, better))
        found += [Cell(solver, k + d, dot=dot, k_dash=k) for solver in under for k, d in plans]
    return found


PIPELINES = tuple(name for name in (*bundled.UNCONDITIONAL, *bundled.NAMES) if name in PLAIN)
