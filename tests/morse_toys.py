"""Dots of no training, and a sampling loop around a network: what tests of Morse's sampler are made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from diffaccel import accelerate_pipeline

ASKED = ("x", "t", "x_s", "k_s", "t_s", "conditioning")


class Dot(nn.Module):
    """A Dot that answers by a function of what it is asked, which it writes down."""

    def __init__(self, answer: Callable[..., Tensor] | None = None, **config: Any) -> None:
        super().__init__()
        known = {"residual_space": "epsilon", "guided": False, "base": "hold", "scheduler": ""}
        self.config = SimpleNamespace(**{**known, **config})
        self.answer = answer
        self.asked: list[SimpleNamespace] = []
        self.dash: list[nn.Module] = []

    def attach(self, dash: nn.Module) -> None:
        """Note the network."""
        self.dash.append(dash)

    def forward(self, x: Tensor, t: Tensor, x_s: Tensor, k_s: Tensor, t_s: Tensor, conditioning: Any) -> Tensor:
        """The function's value, or zero."""
        # Aliases: a pipeline's tensor that is kept alive would be taken for one that comes again.
        given = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, conditioning)
        self.asked.append(SimpleNamespace(**dict(zip(ASKED, (x, t, x_s, k_s, t_s, given), strict=True))))
        return torch.zeros_like(k_s) if self.answer is None else self.answer(x, t, x_s, k_s, t_s)


def of_oracle(x: Tensor, t: Tensor, x_s: Tensor, z_s: Tensor, t_s: Tensor) -> Tensor:
    """The toy Dot of the oracles."""
    gap = (t_s - t).view(-1, *[1] * (x.ndim - 1))
    return 0.25 * (x - x_s) - 0.1 * gap / 1000 + 0.02 * z_s


class Dash(nn.Module):
    """A network by a function of sample and time, with the further arguments that UNets have."""

    def __init__(self, estimate: Callable[[Tensor, Any], Any], form: Callable[[Tensor], Any] = lambda z: (z,)) -> None:
        super().__init__()
        self.estimate, self.form, self.calls = estimate, form, 0

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        down_block_additional_residuals: Any = None,
        skip_layers: list[int] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The function's value, in the form asked for."""
        self.calls += 1
        return self.form(self.estimate(sample, timestep))


def toy_dash(**more: Any) -> Dash:
    """The toy Dash of the oracles."""
    return Dash(lambda x, t: 0.8 * x + 0.1 * t / 1000, **more)


class Loop:
    """A pipeline: a scheduler of diffusers, and a loop around a network.

    `given(step)` lists the further arguments of each call of the network at a step, one call by default; `step` is told
    what the network returned at each step.
    """

    def __init__(self, unet: nn.Module, scheduler: Any) -> None:
        self.unet, self.scheduler = unet, scheduler
        self.seen: list[tuple[float, Tensor, Any, Tensor]] = []  # time, input, output of the first call, next sample

    def __call__(
        self,
        x: Tensor,
        steps: int = 6,
        given: Callable[[int], Sequence[dict[str, Any]]] = lambda step: [{}],
        combine: Callable[[list[Tensor]], Tensor] = lambda outputs: outputs[0],
        **times: Any,
    ) -> Tensor:
        self.seen = []
        self.scheduler.set_timesteps(**(times or {"num_inference_steps": steps}))
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for i, t in enumerate(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            outputs = [self.unet(scaled, t, **more, return_dict=False) for more in given(i)]
            estimate = combine([estimate_in(output) for output in outputs])
            x = self.scheduler.step(estimate, t, x, return_dict=False)[0]
            self.seen.append((float(t), scaled, outputs[0], x))
        return x


def estimate_in(output: Any) -> Tensor:
    """The tensor in an output of any form."""
    if isinstance(output, Tensor):
        return output
    found: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return found


TEXT = torch.ones(2, 6, 24)


def ddim(**config: Any) -> DDIMScheduler:
    """A scheduler whose grids of 4, 5, 8, 20, ... steps lie in each other."""
    return DDIMScheduler(**{"timestep_spacing": "trailing", "clip_sample": False, **config})


def start(batch: int = 2) -> Tensor:
    """A sample to begin with."""
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative difference."""
    return ((found - expected).norm() / expected.norm()).item()


def with_dot(pipe: Any, dot: Dot | None = None, **options: Any) -> Dot:
    """Accelerate a pipeline with a Dot, two Dot steps for each Dash step unless said otherwise."""
    dot = dot or Dot()
    accelerate_pipeline(pipe, "morse", **{"dot": dot, "dots_per_dash": 2, **options})
    return dot
