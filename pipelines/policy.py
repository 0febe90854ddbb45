"""Diffusion policies behind the call of a diffusers pipeline: observations in, a chunk of actions out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor, nn

from diffaccel.pipelines.policies import transformer  # noqa: F401, from_pretrained finds only what was imported
from diffaccel.pipelines.policies.normalizer import LinearNormalizer
from diffaccel.structure import unwrapped

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class PolicyOutput(BaseOutput):
    """What a policy decided.

    Attributes:
        actions: to be executed, in the robot's units, shape (batch, n_action_steps, action_dim).
        trajectory: all that was predicted, from the oldest observation on, shape (batch, horizon, action_dim).
    """

    actions: Tensor
    trajectory: Tensor


class PolicyPipeline(DiffusionPipeline):
    """A diffusion policy: saved, loaded and moved like any pipeline of diffusers, and accelerated like one:
    `accelerate_pipeline(pipe, method="bac", calibration=observations, updates=10)`.

    Args:
        denoiser: predicts noise (or what the scheduler wants) from noisy trajectories, times (batch,), and observations
            named `cond`, or `global_cond` or `conditioning_vec`, flattened to (batch, n_obs_steps * observation_dim).
        scheduler: any of diffusers.
        normalizer: of observations and actions.
        horizon: actions in a trajectory; it begins at the oldest observation.
        n_obs_steps: observations given.
        n_action_steps: actions executed, from the newest observation on.
        num_inference_steps: default of calls; the scheduler's training steps if None.

    Raises:
        ValueError: horizons that do not fit each other.
        TypeError: a network that takes no observations.
    """

    model_cpu_offload_seq = "denoiser"

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: SchedulerMixin,
        normalizer: LinearNormalizer,
        horizon: int = 16,
        n_obs_steps: int = 2,
        n_action_steps: int = 8,
        num_inference_steps: int | None = None,
    ) -> None:
        super().__init__()
        if num_inference_steps is not None and num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        if min(horizon, n_obs_steps, n_action_steps) < 1 or n_obs_steps - 1 + n_action_steps > horizon:
            raise ValueError(
                f"a trajectory of horizon={horizon} cannot hold n_obs_steps={n_obs_steps} and n_action_steps="
                f"{n_action_steps}: it begins at the oldest observation, so n_obs_steps - 1 + n_action_steps may be at "
                "most the horizon, and each at least 1"
            )
        _takes(denoiser)
        self.register_modules(denoiser=denoiser, scheduler=scheduler, normalizer=normalizer)
        self.register_to_config(
            horizon=horizon,
            n_obs_steps=n_obs_steps,
            n_action_steps=n_action_steps,
            num_inference_steps=num_inference_steps,
        )
        self.set_progress_bar_config(disable=True)  # a bar for each action of a robot is of no use

    @classmethod
    def from_diffusion_policy(
        cls,
        source: Mapping[str, Tensor] | str | Path,
        scheduler: SchedulerMixin | None = None,
        n_action_steps: int = 8,
        n_obs_steps: int | None = None,
        num_inference_steps: int | None = None,
        n_head: int = 4,
        ema: bool = True,
    ) -> PolicyPipeline:
        """A low-dimensional transformer policy of real-stanford/diffusion_policy, from its checkpoint.

        Horizon, sizes, layers and masks are read off the parameters; the rest is in the configuration the policy was
        trained with. Trajectories begin at the oldest observation, as in the published configurations.

        Args:
            source: its state dict, a file of it, or of the payload around it; see `policies.checkpoints.read`.
            scheduler: the published one if None, DDPM with 100 steps.
            n_action_steps: as for the class.
            n_obs_steps: as for the class; as many as there are condition tokens for them if None.
            num_inference_steps: as for the class.
            n_head: attention heads.
            ema: take the averaged weights of a payload that has them.

        Raises:
            FileNotFoundError, ValueError: as `policies.checkpoints.read`, or horizons that do not fit.
        """
        from diffaccel.pipelines.policies import checkpoints

        found = checkpoints.read(source, n_head, ema)
        parts = (found.denoiser, scheduler or checkpoints.published_scheduler(), found.normalizer)
        return cls(*parts, found.horizon, n_obs_steps or found.n_obs_steps, n_action_steps, num_inference_steps)

    @property
    def default_steps(self) -> int:
        """Denoising steps of a call that does not say how many."""
        steps = self.config.num_inference_steps
        return int(steps if steps is not None else self.scheduler.config.num_train_timesteps)

    @property
    def device(self) -> torch.device:
        """Where the network is, be it one of diffusers or not."""
        return torch.device(next(self.denoiser.parameters()).device)

    @torch.no_grad()
    def __call__(
        self,
        observations: Tensor | NDArray[Any],
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        return_dict: bool = True,
    ) -> PolicyOutput | tuple[Tensor, Tensor]:
        """Decide what to do.

        Args:
            observations: shape (batch, n_obs_steps, observation_dim), oldest first, in the robot's units.
            num_inference_steps: denoising steps.
            generator: of the noise; one a sample makes results independent of the batch.
            latents: the noise to start from, shape (batch, horizon, action_dim).
            return_dict: a `PolicyOutput` if True, a plain tuple if False.

        Raises:
            ValueError: observations or noise of another shape, values that are not finite, not one generator a sample,
                or less than one step.
        """
        steps = self._steps(num_inference_steps)
        conditioning = self.conditioning(observations)
        latents = self.noise(len(observations), generator, latents)
        trajectory = self.normalizer.unnormalized_action(self.sample(conditioning, latents, steps, generator))
        self.maybe_free_model_hooks()
        begin = self.config.n_obs_steps - 1
        actions = trajectory[:, begin : begin + self.config.n_action_steps]
        return PolicyOutput(actions, trajectory) if return_dict else (actions, trajectory)

    def conditioning(self, observations: Tensor | NDArray[Any]) -> dict[str, Tensor]:
        """Observations as the network takes them: normalized, and by the name of its argument.

        Raises:
            ValueError: observations of another shape, or values that are not finite.
        """
        given = self.normalizer.observation(self._checked(observations))
        given = given.to(self._execution_device, _dtype(self.denoiser))
        name = _takes(self.denoiser)
        return {name: given if name == "cond" else given.flatten(1)}

    def noise(self, batch: int, generator: Generators = None, latents: Tensor | None = None) -> Tensor:
        """The noise that `sample` starts from, shape (batch, horizon, action_dim): drawn, or `latents` if given.

        Raises:
            ValueError: latents of another shape, or not one generator a sample.
        """
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"{len(generator)} generators for a batch of {batch}: give one, or one a sample")
        shape = (batch, self.config.horizon, len(self.normalizer.action_scale))
        device, dtype = self._execution_device, _dtype(self.denoiser)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if latents.shape != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        return latents.to(device, dtype)

    def sample(
        self,
        conditioning: dict[str, Tensor],
        latents: Tensor,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """The denoising loop by itself. Gradients flow through it; the call runs it without any.

        Args:
            conditioning: made by `conditioning`.
            latents: made by `noise`; stochastic schedulers draw from the same generator, so make them first.
            num_inference_steps: denoising steps.
            generator: of the noise that stochastic schedulers add.

        Returns:
            The trajectory in normalized units, shape (batch, horizon, action_dim), in float32 or better.
        """
        self.scheduler.set_timesteps(self._steps(num_inference_steps), device=latents.device)
        sample = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)  # schedulers of flow matching have none
        scaled = getattr(self.scheduler, "scale_model_input", None)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        more = {"generator": generator} if takes_generator else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            seen = sample if scaled is None else scaled(sample, t)
            predicted = self.denoiser(seen, t.expand(len(sample)), **conditioning)
            sample = self.scheduler.step(predicted, t, sample, return_dict=False, **more)[0]
        return sample.to(torch.promote_types(sample.dtype, torch.float32))

    def _steps(self, wanted: int | None) -> int:
        if wanted is not None and wanted < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {wanted}")
        return self.default_steps if wanted is None else wanted

    def _checked(self, observations: Tensor | NDArray[Any]) -> Tensor:
        given = torch.as_tensor(observations)
        expected = (self.config.n_obs_steps, len(self.normalizer.observation_scale))
        if given.ndim != 3 or tuple(given.shape[1:]) != expected:
            raise ValueError(
                f"observations must have shape (batch, {expected[0]}, {expected[1]}): the last {expected[0]} "
                f"observations of {expected[1]} numbers, oldest first; got {tuple(given.shape)}"
            )
        if not given.isfinite().all():
            raise ValueError("observations have values that are not finite: check the sensors")
        return given.float()


def _takes(network: nn.Module) -> str:
    """The keyword argument by which a network takes observations."""
    parameters = inspect.signature(type(unwrapped(network)).forward).parameters
    for name in ("cond", "global_cond", "conditioning_vec"):
        if name in parameters:
            return name
    raise TypeError(
        f"{type(unwrapped(network)).__name__} takes no observations: its forward needs an argument named cond, "
        "global_cond or conditioning_vec"
    )


def _dtype(network: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
