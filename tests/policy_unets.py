"""The convolutional UNet of real-stanford/diffusion_policy, and lerobot's policy with such a network."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from tests.policy_transformers import (
    ACTION,
    EXECUTED,
    HORIZON,
    OBSERVATION,
    OBSERVED,
    SCHEDULE,
    SinusoidalPosEmb,
    randomize,
)


class Conv1dBlock(nn.Module):
    """Convolution, group norm, Mish."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ConditionalResidualBlock1D(nn.Module):
    """Two convolutions, the condition added between them."""

    def __init__(self, inputs: int, outputs: int, cond_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Conv1dBlock(inputs, outputs), Conv1dBlock(outputs, outputs)])
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, outputs), nn.Unflatten(-1, (-1, 1)))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](x) + self.cond_encoder(cond)) + self.residual_conv(x)


class Downsample1d(nn.Module):
    """Half as long."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample1d(nn.Module):
    """Twice as long."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ConditionalUnet1D(nn.Module):
    """real-stanford's UNet. The skip of the first level is kept, and never used: there is one up level fewer."""

    def __init__(self, input_dim: int, global_cond_dim: int, down_dims: tuple[int, ...] = (16, 32, 48)) -> None:
        super().__init__()
        cond_dim = 16 + global_cond_dim
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalPosEmb(16), nn.Linear(16, 64), nn.Mish(), nn.Linear(64, 16)
        )
        sizes = [input_dim, *down_dims]
        pairs = list(zip(sizes, down_dims, strict=False))
        last = down_dims[-1]
        self.mid_modules = nn.ModuleList(ConditionalResidualBlock1D(last, last, cond_dim) for _ in range(2))
        # Registered in another order than they run in, as the original registers them.
        self.up_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    ConditionalResidualBlock1D(2 * outputs, inputs, cond_dim),
                    ConditionalResidualBlock1D(inputs, inputs, cond_dim),
                    Upsample1d(inputs),
                ]
            )
            for inputs, outputs in reversed(pairs[1:])
        )
        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    ConditionalResidualBlock1D(inputs, outputs, cond_dim),
                    ConditionalResidualBlock1D(outputs, outputs, cond_dim),
                    nn.Identity() if outputs == last else Downsample1d(outputs),
                ]
            )
            for inputs, outputs in pairs
        )
        self.final_conv = nn.Sequential(Conv1dBlock(down_dims[0], down_dims[0]), nn.Conv1d(down_dims[0], input_dim, 1))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        features = torch.cat([self.diffusion_step_encoder(times), global_cond], -1)
        x, skips = sample.transpose(1, 2), []
        for first, second, down in self.down_modules:
            x = second(first(x, features), features)
            skips.append(x)
            x = down(x)
        for mid in self.mid_modules:
            x = mid(x, features)
        for first, second, up in self.up_modules:
            x = up(second(first(torch.cat([x, skips.pop()], 1), features), features))
        return self.final_conv(x).transpose(1, 2)


class DiffusionModel(nn.Module):
    """What lerobot's `diffusion` policy keeps under `policy.diffusion`: a UNet and the sampling."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.unet = randomize(ConditionalUnet1D(ACTION, OBSERVED * OBSERVATION))
        self.noise_scheduler, self.num_inference_steps = DDPMScheduler(**SCHEDULE, clip_sample=False), calls

    def conditional_sample(self, batch_size: int, global_cond: Tensor | None = None) -> Tensor:
        sample = torch.randn(batch_size, HORIZON, ACTION)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            predicted = self.unet(sample, torch.full((batch_size,), int(t)), global_cond=global_cond)
            sample = self.noise_scheduler.step(predicted, t, sample).prev_sample
        return sample

    def generate_actions(self, batch: dict[str, Tensor]) -> Tensor:
        given = batch["observation.state"].flatten(1)
        return self.conditional_sample(len(given), given)[:, OBSERVED - 1 : OBSERVED - 1 + EXECUTED]


class DiffusionPolicy(nn.Module):
    """lerobot's convolutional `diffusion` policy."""

    def __init__(self, calls: int = 10) -> None:
        super().__init__()
        self.diffusion = DiffusionModel(calls)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor]) -> Tensor:
        return self.diffusion.generate_actions(batch)
