"""What a denoiser learns to predict: velocities of flow matching, or noise on the steps of a diffusion schedule.

Both draw noise levels from one distribution, of the logarithm of the noise's share over the data's, and weigh errors
alike: by how far they move the velocity noise minus data.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from diffusers import DDIMScheduler
from torch import Tensor


class Noised(NamedTuple):
    """Training pairs at some noise levels.

    Attributes:
        noisy: what the model sees, shaped like the data.
        time: the times it is told [B].
        target: what it should predict, shaped like the data.
        weight: of each sample's mean squared error [B].
    """

    noisy: Tensor
    time: Tensor
    target: Tensor
    weight: Tensor


class Objective(Protocol):
    """Mixes data and noise at noise levels ``log(noise share / data share)`` [B]."""

    def __call__(self, data: Tensor, noise: Tensor, level: Tensor) -> Noised: ...


def flow_matching(data: Tensor, noise: Tensor, level: Tensor) -> Noised:
    """Straight lines from data to noise; the target is their velocity, noise minus data; times are in 0..1."""
    sigma = torch.sigmoid(level)
    noisy = torch.lerp(data, noise, _like(sigma, data))
    return Noised(noisy, sigma, noise - data, torch.ones_like(sigma))


def noise_schedule() -> DDIMScheduler:
    """The linear schedule of DDPM and DiT; at its end less than a hundredth of the picture is left.

    The one Stable Diffusion comes with leaves a fifteenth, and a sampler that starts from noise alone then misses the
    brightness of plain backgrounds (arXiv:2305.08891).
    """
    return DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)


class Epsilon:
    """Prediction of the noise at the steps of a scheduler (DDPM, arXiv:2006.11239); times are its whole numbers.

    An error e of the noise at the ratio r of noise to data is an error e (1 + r) of the velocity, so squares are
    weighted with (1 + r) squared. The weight stops growing at ``ceiling``: little of the data is left to be predicted
    there, and few samples would make most of the loss.
    """

    def __init__(self, scheduler: DDIMScheduler, ceiling: float = 25.0) -> None:
        signal = scheduler.alphas_cumprod.double()
        self.data, self.noise = signal.sqrt().float(), (1 - signal).sqrt().float()
        self.levels = ((1 - signal) / signal).sqrt().log().float()
        self.ceiling = ceiling

    def __call__(self, data: Tensor, noise: Tensor, level: Tensor) -> Noised:
        """See :class:`Objective`; each level is replaced by the scheduler's next one."""
        time = torch.searchsorted(self.levels, level).clamp(max=len(self.levels) - 1)
        noisy = _like(self.data[time], data) * data + _like(self.noise[time], data) * noise
        weight = (1 + self.levels[time].exp()).square().clamp(max=self.ceiling)
        return Noised(noisy, time, noise, weight)


def _like(values: Tensor, data: Tensor) -> Tensor:
    """Values [B] with as many axes as the data."""
    return values.view(-1, *[1] * (data.ndim - 1))
