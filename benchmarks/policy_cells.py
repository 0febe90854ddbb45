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

SAMPLERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "ddim-trailing": (DDIMScheduler, {"timestep_spacing": "trailing"}),
    "dpmsolver": (DPMSolverMultistepScheduler, {"timestep_spacing": "linspace"}),
}
"""Classes of diffusers, and what they are given beside the schedule the policy was trained with."""
FULL_STEPS = 100
OBSERVATIONS = 8
"""So many calibrated methods learn from; the paper takes 1."""


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
        learnt = [f"observations={self.calibration}"] if self.calibration not in (0, OBSERVATIONS) else []
        return " ".join([f"{self.sampler}-{self.steps}", *method, *options, *learnt])

    @property
    def reference(self) -> Cell | None:
        """The run of all steps that makes the same actions from the same noise, but for what is saved.

        None for DDPM with fewer steps, which draws its noise at other times.
        """
        return None if self.sampler == "ddpm" and self.steps != FULL_STEPS else Cell(self.sampler, FULL_STEPS)

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

PLAIN = [
    FULL,
    *(Cell("ddpm", steps) for steps in (50, 20, 10, 5)),
    *(
        Cell(sampler, steps)
        for sampler in ("ddim", "ddim-trailing", "dpmsolver")
        for steps in (100, 50, 20, 15, 10, 7, 5, 4, 3, 2)
    ),
]
"""Plain runs; those between the 50, 20, 10 and 5 of the table draw the curve of error against time."""

PUBLISHED = [
    *(Cell("ddpm", FULL_STEPS, "uniform", {"updates": updates}) for updates in UPDATES),
    *(Cell("ddpm", FULL_STEPS, name, {"updates": n}, OBSERVATIONS) for name in ("unified", "acs") for n in UPDATES),
    *(Cell("ddpm", FULL_STEPS, "bac", {"updates": n, "bubbling": 5}, OBSERVATIONS) for n in UPDATES),
    Cell("ddpm", FULL_STEPS, "bac", {"updates": 10, "bubbling": 5}, 1),
    *(Cell("ddim", 20, "bac", {"updates": n, "bubbling": 5}, OBSERVATIONS) for n in (10, 7, 5)),
]
"""Block-wise caching as published, its ablations, and uniform reuse."""

BEYOND = [
    *(
        Cell(sampler, steps, "taylorseer", {"interval": interval, "order": order, "level": "model"})
        for sampler, steps, intervals in (
            ("ddpm", FULL_STEPS, (5, 10)),
            ("ddim", 20, (2, 4)),
            ("dpmsolver", 20, (2, 4)),
        )
        for interval in intervals
        for order in (0, 1)
    ),
]
"""Everything else of diffaccel."""

CELLS = {cell.name: cell for cell in (*PLAIN, *PUBLISHED, *BEYOND)}
"""All of them by name."""
