"""Linear normalization of observations and actions to -1..1, as Diffusion Policy's `LinearNormalizer` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class LinearNormalizer(ModelMixin, ConfigMixin):
    """`normalized = scale * value + offset`, dimension by dimension; saved and loaded like a network.

    It stays in float32 where a policy is moved to another dtype: half precision would round positions.

    Args:
        observation_dim: size of an observation.
        action_dim: size of an action.
    """

    _keep_in_fp32_modules: ClassVar[list[str]] = [
        "observation_scale",
        "observation_offset",
        "action_scale",
        "action_offset",
    ]

    observation_scale: Tensor
    observation_offset: Tensor
    action_scale: Tensor
    action_offset: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        for name, dim in (("observation", observation_dim), ("action", action_dim)):
            self.register_buffer(f"{name}_scale", torch.ones(dim))
            self.register_buffer(f"{name}_offset", torch.zeros(dim))

    @classmethod
    def of(cls, observations: Tensor, actions: Tensor) -> LinearNormalizer:
        """The normalizer that maps the range of each dimension of some data to -1..1.

        Dimensions that hardly vary (range below 1e-4) are only moved, to 0.

        Args:
            observations: shape (n, observation_dim).
            actions: shape (n, action_dim).
        """
        made: LinearNormalizer = cls(observations.shape[-1], actions.shape[-1])
        for name, data in (("observation", observations), ("action", actions)):
            low, high = data.amin(0).double(), data.amax(0).double()
            scale = torch.where(high - low < 1e-4, 1.0, 2 / (high - low).clamp(min=1e-4))
            getattr(made, f"{name}_scale").copy_(scale)
            getattr(made, f"{name}_offset").copy_(-scale * (high + low) / 2)
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LinearNormalizer:
        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        super()._apply(moved, recurse)
        return self

    def observation(self, values: Tensor) -> Tensor:
        """Observations (..., observation_dim) as the network sees them, in the normalizer's dtype."""
        return values.to(self.observation_scale) * self.observation_scale + self.observation_offset

    def action(self, values: Tensor) -> Tensor:
        """Actions (..., action_dim) as the network sees them."""
        return values.to(self.action_scale) * self.action_scale + self.action_offset

    def unnormalized_action(self, values: Tensor) -> Tensor:
        """Actions (..., action_dim) in the robot's units."""
        return (values.to(self.action_scale.device) - self.action_offset) / self.action_scale
