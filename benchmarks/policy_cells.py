"""What is compared in the closed loop: samplers with fewer and fewer steps, and methods on top of them.

A line in a list below is all it takes to add to the comparison: sampler, steps, method, and its options as
`accelerate_pipeline` takes them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from diffaccel import accelerate_pipeline
from diffaccel.pipelines.policy import PolicyPipeline

_CLIPPED = {"thresholding": True, "sample_max_value": 1.0}  # what `clip_sample` of DDPM and DDIM does
SAMPLERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "dpmsolver": (DPMSolverMultistepScheduler, {"timestep_spacing": "leading", **_CLIPPED}),
    "dpmsolver-lu": (
        DPMSolverMultistepScheduler,
        {"timestep_spacing": "linspace", "use_lu_lambdas": True, **_CLIPPED},
    ),
}
"""Classes of diffusers, and what they are given beside the schedule the policy was trained with.

Of DPM-Solver the settings that were nearest to DDIM with 100 steps: without clipping it diverges where it begins at the
last step; evenly spaced it is best at 20 steps and fewer, with the spacing of Lu et al. at 20 and more.
"""
FULL_STEPS = 100
OBSERVATIONS = 8
"""So many calibrated methods learn from; the paper takes 1."""
FITTED = 16
"""So many weights are fitted to: a regression needs more."""


@dataclass(frozen=True)
class Cell:
    """One way to run the policy.

    Attributes:
        sampler: a name in `SAMPLERS`.
        steps: calls of the network a query.
        method: of diffaccel, by name; None for a plain run.
        options: of the method.
        calibration: observations the method learns from; 0 for none.
    """

    sampler: str
    steps: int
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: int = 0

    @property
    def name(self) -> str:
        """Such as `ddpm-100 bac bubbling=5 updates=10`."""
        method = [] if self.method is None else [self.method]
        options = [f"{key}={value}" for key, value in sorted(self.options.items())]
        usual = FITTED if self.method in ("fitted", "innovation") else OBSERVATIONS
        learnt = [f"observations={self.calibration}"] if self.calibration not in (0, usual) else []
        return " ".join([f"{self.sampler}-{self.steps}", *method, *options, *learnt])

    @property
    def reference(self) -> Cell | None:
        """The run of all steps that makes the same actions from the same noise, but for what is saved.

        That of deterministic samplers is DDIM's: they solve one equation. None for DDPM with fewer steps, which draws
        its noise at other times.
        """
        if self.sampler == "ddpm":
            return FULL if self.steps == FULL_STEPS else None
        return Cell("ddim", FULL_STEPS)

    def as_dict(self) -> dict[str, Any]:
        """The cell as plain data."""
        return {**asdict(self), "name": self.name}

    def pipeline(self, policy: PolicyPipeline, observations: Tensor) -> PolicyPipeline:
        """A copy of a policy that runs as this cell says; called without a number of steps, it takes the cell's.

        Args:
            policy: not accelerated.
            observations: recorded ones to learn from, shape (n, n_obs_steps, observation_dim).

        Raises:
            ValueError: fewer observations than the cell learns from, or what `accelerate_pipeline` refuses.
        """
        if len(observations) < self.calibration:
            raise ValueError(f"{self.name} needs {self.calibration} observations, there are {len(observations)}")
        made = copy.deepcopy(policy)
        kind, more = SAMPLERS[self.sampler]
        made.register_modules(scheduler=kind.from_config(policy.scheduler.config, **more))
        made.register_to_config(num_inference_steps=self.steps)
        if self.method is not None:
            learnt = {"calibration": observations[: self.calibration]} if self.calibration else {}
            accelerate_pipeline(made, self.method, **self.options, **learnt)
        return made


FULL = Cell("ddpm", FULL_STEPS)
UPDATES = (20, 10, 7, 5)
CURVE = (15, 10, 7, 5, 4, 3, 2)
"""Steps of plain runs, close enough to tell which of them takes as long as a cached one."""

PLAIN = [
    FULL,
    *(Cell("ddpm", steps) for steps in (50, 20, 10, 5)),
    *(Cell("ddim", steps) for steps in (FULL_STEPS, 50, 20, *CURVE)),
    *(Cell("dpmsolver", steps) for steps in (20, *CURVE)),
    *(Cell("dpmsolver-lu", steps) for steps in (50, 20, 10)),
]
"""Plain runs."""

PUBLISHED = [
    *(Cell("ddpm", FULL_STEPS, "uniform", {"updates": updates}) for updates in UPDATES),
    *(Cell("ddpm", FULL_STEPS, name, {"updates": n}, OBSERVATIONS) for name in ("unified", "acs") for n in UPDATES),
    *(Cell("ddpm", FULL_STEPS, "bac", {"updates": n, "bubbling": 5}, OBSERVATIONS) for n in UPDATES),
    Cell("ddpm", FULL_STEPS, "bac", {"updates": 10, "bubbling": 5}, 1),
    *(Cell("ddim", 20, "bac", {"updates": n, "bubbling": 5}, OBSERVATIONS) for n in (10, 7, 5)),
]
"""Block-wise caching as published, its ablations, and uniform reuse."""

BEYOND = [
    *(Cell("ddpm", FULL_STEPS, "effect", {"updates": n}, OBSERVATIONS) for n in UPDATES),
    *(Cell("ddpm", FULL_STEPS, "effect", {"updates": n, "common": False}, OBSERVATIONS) for n in (10, 5)),
    *(Cell("ddim", 20, "effect", {"updates": n, "order": order}, OBSERVATIONS) for n in (10, 5) for order in (0, 1)),
    Cell("ddpm", FULL_STEPS, "bac", {"updates": 10, "bubbling": 5, "order": 1}, OBSERVATIONS),
    Cell("ddim", 20, "bac", {"updates": 5, "bubbling": 5, "order": 1}, OBSERVATIONS),
    *(Cell("ddim", 20, "taylorseer", {"interval": n, "order": 1, "level": "output"}) for n in (3, 5)),
    *(Cell("ddpm", FULL_STEPS, "fitted", {"computed": n, "level": "output"}, FITTED) for n in (20, 10)),
    *(Cell("ddpm", FULL_STEPS, "innovation", {"computed": n}, FITTED) for n in (20, 10, 7, 5, 3)),
    *(Cell("ddim", 10, "innovation", {"computed": n}, FITTED) for n in (5, 3)),
    *(
        Cell("ddim", steps, "fitted", {"computed": n, "level": "output"}, FITTED)
        for steps, counts in ((20, (10, 7, 5)), (10, (7, 5, 4, 3, 2)))
        for n in counts
    ),
    *(Cell("ddim", 10, "fitted", {"computed": n, "level": "model"}, FITTED) for n in (5, 3)),
]
"""Everything else of diffaccel."""

CELLS = {cell.name: cell for cell in (*PLAIN, *PUBLISHED, *BEYOND)}
"""All of them by name."""
