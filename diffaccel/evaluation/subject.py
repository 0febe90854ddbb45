"""The subject of an evaluation: a pipeline with its prompts, a seed for each picture, and what else its calls take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffaccel.evaluation.candidates import Candidate
from diffaccel.patch import Patch
from diffaccel.pipelines import image


@dataclass(frozen=True)
class Work:
    """What a candidate computes in one run.

    Attributes:
        steps: evaluations of the network in a run without acceleration, as the scheduler counts them.
        computed: those that are computed, a mean where sites differ.
        bound: speed-up over the full run that cannot be exceeded.
        cache_bytes: memory of what the method keeps; None for plain runs.
    """

    steps: int
    computed: float
    bound: float
    cache_bytes: int | None


@dataclass(frozen=True)
class Drawn:
    """Some of the pictures: float32 [n, 3, height, width] in 0..1, and the latents they were decoded from."""

    pictures: Tensor
    latents: Tensor


class Subject:
    """A pipeline and everything its calls need, the same for all candidates.

    Args:
        pipe: a diffusers text-to-image or class-to-image pipeline.
        prompts: one a picture.
        seed: the picture at position i starts from the noise of seed + i.
        steps: of the full run.
        arguments: further arguments of the pipeline's call.
    """

    def __init__(self, pipe: Any, prompts: Sequence[str], seed: int, steps: int, arguments: Mapping[str, Any]) -> None:
        self.pipe, self.prompts, self.steps = pipe, list(prompts), steps
        self.seeds = [seed + i for i in range(len(prompts))]
        self.arguments = {name: value for name, value in arguments.items() if name != "num_inference_steps"}

    def draw(self, candidate: Candidate, rows: slice) -> Drawn:
        """Pictures and latents of these rows, in one call of the pipeline."""
        with latents_of(self.pipe) as kept, candidate.applied(self.pipe):
            pictures = self.pictures(candidate, rows)
        # Class-conditional pipelines step both guidance branches together; the first half is decoded.
        return Drawn(pictures, kept[-1][: len(pictures)].cpu())

    def pictures(self, candidate: Candidate, rows: slice) -> Tensor:
        """Pictures of these rows by the pipeline as it is; `candidate` only gives the number of steps."""
        arguments = self.arguments | {"num_inference_steps": candidate.steps}
        return image.pictures(self.pipe, self.prompts[rows], self.seeds[rows], **arguments)

    def work(self, candidate: Candidate) -> Work:
        """What the candidate computes, seen in a run of one picture.

        Raises:
            ValueError: the method does not fit the pipeline.
        """
        if candidate.method is None:
            return Work(candidate.steps, candidate.steps, self.steps / candidate.steps, None)
        with candidate.applied(self.pipe):
            self.pictures(candidate, slice(1))
            acceleration = self.pipe.acceleration
            plan = acceleration.plan
            memory = sum(acceleration.report(name).memory for name in acceleration.networks)
            bound = acceleration.report().bound
        return Work(plan.steps, plan.steps / bound, bound, memory)

    def plain_steps(self, work: Work) -> int:
        """Steps of the plain run that computes as much as `work`, rounded in the plain run's favour."""
        return min(self.steps, math.ceil(self.steps / work.bound - 1e-9))


@contextmanager
def latents_of(pipe: Any) -> Iterator[list[Tensor]]:
    """A list that holds what `pipe.scheduler.step` returned last: after a run, the latents that are decoded."""
    kept: list[Tensor] = []

    def wrap(real: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            kept[:] = [(result[0] if isinstance(result, tuple) else result.prev_sample).detach()]
            return result

        return step

    patch = Patch(pipe.scheduler, "step", wrap)
    try:
        yield kept
    finally:
        patch.remove()


def free_memory(device: torch.device) -> None:
    """Give cached memory of a GPU back between candidates."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
