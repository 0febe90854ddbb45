"""The best linear forecast of a network's output, given the sample it is asked about. Not from a paper.

Caches forecast what a network returns from what it returned before. But it is asked about a sample x that is known, and
part of what is new in x passes straight on to the output: of the noise that a stochastic sampler adds, almost all. With
a the last computed step, the forecast of step t is

    F[t] ~ w_F F[a] + w_x x[a] + w x[t]

and the three weights are a linear regression over runs of the pipeline. As in a Kalman filter, where the part of a
measurement that was not foreseen is called the innovation, w says how far to follow it. All regressions of all plans
come from one matrix, the second moments of outputs and samples at all steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffaccel.fingerprint import Fingerprint
from diffaccel.segments import best_schedules

Array = npt.NDArray[np.float64]

KIND = "diffaccel second moments of outputs and samples"
SUFFIX = ".safetensors"
_LEAST_RIDGE = 1e-9


@dataclass(frozen=True, eq=False)
class Statistics:
    """Second moments of a network's outputs F and its samples x over uncached runs.

    Attributes:
        gram: mean products of F[0], ..., F[K-1], x[0], ..., x[K-1], over all numbers of all samples, shape (2K, 2K).
        responses: how far the result moves with the output at each step, see `diffaccel.response`.
        fingerprint: of network, scheduler and number of steps.
        samples: from which the moments were made, branches of guidance counted apart.

    Raises:
        ValueError: moments of another shape, or values that are not finite.
    """

    gram: Array
    responses: tuple[float, ...]
    fingerprint: Fingerprint
    samples: int

    def __post_init__(self) -> None:
        if self.gram.shape != (2 * self.steps, 2 * self.steps) or self.fingerprint.steps != self.steps:
            raise ValueError(f"moments of {self.steps} steps have shape {(2 * self.steps,) * 2}, got {self.gram.shape}")
        if not np.isfinite(self.gram).all() or not np.isfinite(self.responses).all():
            raise ValueError("outputs or samples hold NaN or infinity: check what the pipeline makes uncached")

    def __repr__(self) -> str:
        return f"Statistics({self.steps} steps, {self.samples} samples)"

    @property
    def steps(self) -> int:
        """Network calls of a run, K."""
        return len(self.responses)

    def save(self, path: str | Path) -> None:
        """Write them as a safetensors file. Raises ValueError if the path does not end in .safetensors."""
        if Path(path).suffix != SUFFIX:
            raise ValueError(f"moments of outputs and samples are a file that ends in {SUFFIX}, got {path}")
        notes = {"kind": KIND, "fingerprint": json.dumps(self.fingerprint.as_dict()), "samples": str(self.samples)}
        tensors = {"gram": torch.from_numpy(self.gram), "responses": torch.tensor(self.responses, dtype=torch.float64)}
        save_file(tensors, str(path), notes)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Statistics from a file of `save`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or holds something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path} with moments of outputs and samples")
        try:
            with safe_open(str(path), "pt") as file:
                notes, found = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise ValueError(f"{path} cannot be read as a safetensors file: {error}") from error
        if notes.get("kind") != KIND:
            raise ValueError(f"{path} does not hold moments of outputs and samples: give what statistics.save wrote")
        try:
            mark = Fingerprint(**json.loads(notes["fingerprint"]))
            return cls(found["gram"].numpy(), tuple(found["responses"].tolist()), mark, int(notes["samples"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no whole moments of outputs and samples: {error}") from error

    def check(self, now: Fingerprint) -> None:
        """Raise ValueError unless they are of this network, scheduler and number of steps."""
        if found := self.fingerprint.differences(now):
            raise ValueError(
                f"the calibration is for another {' and another '.join(found)}: make one for this pipeline"
            )


@dataclass(frozen=True)
class Regression:
    """Weights of a forecast.

    Attributes:
        outputs: of the outputs at the computed steps, newest first.
        samples: of the samples at those steps.
        now: of the sample the network is asked about.
    """

    outputs: tuple[float, ...]
    samples: tuple[float, ...]
    now: float


def regression(gram: Array, anchors: Sequence[int], t: int, ridge: float) -> Regression:
    """The best weights for step `t`.

    Args:
        gram: see `Statistics`.
        anchors: computed steps before `t`, newest first.
        t: the skipped step.
        ridge: share of each regressor's own power that is added to it, so that little is gained by large weights.
    """
    w = _solve(gram, anchors, t, ridge)
    n = len(anchors)
    return Regression(tuple(w[:n].tolist()), tuple(w[n : 2 * n].tolist()), float(w[2 * n]))


def best_plan(statistics: Statistics, computed: int, ridge: float) -> list[int]:
    """The computed steps whose forecasts in between move the result least, by one anchor each.

    The errors of a segment are followed with their signs: the result moves by sum_t c_t (F[t] - forecast[t]), with c
    the responses, and the mean square of that is a quadratic form of the moments. Segments are taken to be independent.

    Raises:
        ValueError: more computed steps than steps, or none.
    """
    gram, steps = statistics.gram, statistics.steps
    check_computed(computed, steps)
    cost = np.zeros((steps, steps))
    for a in range(steps):
        moved = np.zeros(2 * steps)
        for t in range(a + 1, steps):
            moved += statistics.responses[t] * _error(gram, a, t, ridge)
            cost[a, t] = moved @ gram @ moved
    return best_schedules(cost, computed, "lower").schedule(computed)


def check_computed(computed: int, steps: int) -> None:
    """Raise ValueError unless so many steps of a run can be computed."""
    if not 1 <= computed <= steps:
        raise ValueError(f"computed={computed} is not possible in a run of {steps} network calls: choose 1 to {steps}")


def _error(gram: Array, a: int, t: int, ridge: float) -> Array:
    """F[t] less its forecast from step `a`, as weights on all outputs and samples."""
    steps = len(gram) // 2
    error = np.zeros(2 * steps)
    error[_columns([a], t, steps)] = -_solve(gram, [a], t, ridge)
    error[t] += 1
    return error


def _solve(gram: Array, anchors: Sequence[int], t: int, ridge: float) -> Array:
    columns = _columns(anchors, t, len(gram) // 2)
    inner = gram[np.ix_(columns, columns)]
    power = inner.diagonal()
    # Samplers without noise make the sample from its regressors, so some of these depend on each other.
    solution = np.linalg.solve(inner + np.diag((ridge + _LEAST_RIDGE) * power + (power == 0)), gram[columns, t])
    return np.asarray(solution, dtype=np.float64)


def _columns(anchors: Sequence[int], t: int, steps: int) -> list[int]:
    """Where the regressors stand among the moments: outputs, samples, the sample now."""
    return [*anchors, *(steps + a for a in anchors), steps + t]


def moments(outputs: torch.Tensor, samples: torch.Tensor) -> Array:
    """Mean products over all numbers, shape (2K, 2K).

    Args:
        outputs: shape (K, ...).
        samples: the same shape.
    """
    series = torch.cat([outputs.flatten(1), samples.flatten(1)]).cpu().double()
    gram: Any = series @ series.T / series.shape[1]
    return np.asarray(gram.numpy(), dtype=np.float64)
