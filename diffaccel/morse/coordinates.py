"""In which coordinates Dash's estimate is kept between its steps, and how it is given back as the network would.

With a kept epsilon the sampler's path is a straight line in x / alpha over sigma / alpha, so that between Dash steps
DDIM and Euler go where one jump goes, as long as Dot says 0. A kept v or x0 would bend it, so these are kept as epsilon
and made anew at the sample where they are asked for. Samplers that inject noise are the other way round: epsilon says
nothing of noise that was added since, x0 is what Dash said (`residual_space="sample"`). In flow matching the velocity
is constant along the line and kept as it is.

The paper has epsilon-predicting networks only; all else here is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

Time: TypeAlias = float | Tensor

EPSILON, SAMPLE, VELOCITY, FLOW = "epsilon", "sample", "v_prediction", "flow_prediction"
RESIDUAL_SPACES = (EPSILON, SAMPLE)

_LEAST = 2.0**-24  # alpha_bar where a schedule ends without any signal, as diffusers' schedulers have it

# By what is given and what is wanted: the weights of x and of what is given, for alpha and sigma.
_WEIGHTS: Mapping[tuple[str, str], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = MappingProxyType(
    {
        (EPSILON, SAMPLE): lambda a, s: (1 / a, -s / a),
        (EPSILON, VELOCITY): lambda a, s: (-s / a, 1 / a),
        (VELOCITY, SAMPLE): lambda a, s: (a, -s),
        (VELOCITY, EPSILON): lambda a, s: (s, a),
        (SAMPLE, EPSILON): lambda a, s: (1 / s, -a / s),
        (SAMPLE, VELOCITY): lambda a, s: (a / s, -1 / s),
    }
)


@dataclass(frozen=True, eq=False)
class Coordinates:
    """What is kept of a network's output, and back, for one scheduler.

    A sample x is meant as the network is given it: alpha x0 + sigma noise with alpha^2 + sigma^2 = 1, which is what
    `scale_model_input` makes of it where a scheduler keeps it in another scale.

    Attributes:
        prediction: what the network returns: "epsilon", "v_prediction", "sample" (x0) or "flow_prediction".
        kept: what is kept of it: "epsilon", "sample" or, in flow matching, "flow_prediction".
        log_snr: log(alpha^2 / sigma^2) by training step [T], float64; empty in flow matching.
    """

    prediction: str
    kept: str
    log_snr: Tensor
    _on_device: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, scheduler: Any, residual_space: str = EPSILON) -> Coordinates:
        """The coordinates for a scheduler of diffusers.

        Args:
            scheduler: one with `alphas_cumprod`, or of flow matching.
            residual_space: "epsilon" for deterministic samplers, "sample" for those that inject noise.

        Raises:
            ValueError: a residual space that cannot be had with this scheduler, or a scheduler that tells nothing of
                its noise, or of what the network predicts.
        """
        name = type(scheduler).__name__
        if residual_space not in RESIDUAL_SPACES:
            raise ValueError(f"residual_space must be one of {', '.join(RESIDUAL_SPACES)}, got {residual_space!r}")
        if is_flow(scheduler):
            if residual_space == SAMPLE:
                raise ValueError(
                    f"{name} is of flow matching, where the velocity is kept: use a Dot of residual_space='epsilon'"
                )
            return cls(FLOW, FLOW, torch.empty(0))
        prediction = getattr(scheduler.config, "prediction_type", EPSILON)
        if prediction not in (EPSILON, VELOCITY, SAMPLE):
            raise ValueError(f"{name} has prediction_type={prediction!r}, of which Morse cannot tell epsilon")
        if (alpha_bar := getattr(scheduler, "alphas_cumprod", None)) is None:
            raise ValueError(
                f"{name} has no alphas_cumprod and is not of flow matching, so Morse cannot tell epsilon and x0 apart: "
                "use DDIMScheduler, EulerDiscreteScheduler or FlowMatchEulerDiscreteScheduler"
            )
        alpha_bar = torch.as_tensor(alpha_bar).detach().double().cpu().clamp(min=_LEAST)
        return cls(prediction, residual_space, torch.logit(alpha_bar))

    def keep(self, z: Tensor, x: Tensor, t: Time) -> Tensor:
        """What is kept of the network's output `z` at sample `x` [B, ...] and time `t`."""
        return self._convert(z, self.prediction, self.kept, x, t)

    def output(self, k: Tensor, x: Tensor, t: Time) -> Tensor:
        """What the network would return at sample `x` and time `t` if `k` were kept of it."""
        return self._convert(k, self.kept, self.prediction, x, t)

    def jump(self, k: Tensor, x: Tensor, t: Time, t_next: Time, noise: Tensor | None = None) -> Tensor:
        """The sample at `t_next` of one step of DDIM, or of Euler in flow matching.

        Args:
            k: what is kept of the network's output at `x`.
            x: the sample [B, ...].
            t: its time; in flow matching its sigma.
            t_next: the time of arrival; below 0, of clean data. In flow matching sigma.
            noise: standard normal, shaped like `x`: draw from DDPM's posterior q(x_next | x, x0) instead.

        Raises:
            ValueError: noise in flow matching.
        """
        if self.kept == FLOW:
            if noise is not None:
                raise ValueError("a step of Euler in flow matching takes no noise")
            return (x + _column(_as_tensor(t_next, x) - _as_tensor(t, x), x) * k).to(x.dtype)
        (_, s), (a_next, s_next) = self.alpha_sigma(t, x), self.alpha_sigma(t_next, x)
        x0 = self._convert(k, self.kept, SAMPLE, x, t)
        if noise is None:
            return (a_next * x0 + s_next * self._convert(k, self.kept, EPSILON, x, t)).to(x.dtype)
        # Ho et al., "Denoising Diffusion Probabilistic Models", eq. 6 and 7.
        shrink = self.alpha_sigma(t, x)[0] / a_next
        beta = 1 - shrink**2
        mean = (a_next * beta * x0 + shrink * s_next**2 * x) / s**2
        return (mean + s_next / s * beta.clamp(min=0).sqrt() * noise).to(x.dtype)

    def alpha_sigma(self, t: Time, x: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at a time, as columns for samples like `x` [B, ...], in float32 at least.

        Times between training steps are interpolated in log-SNR; before the first step, t < 0, the data are clean.
        """
        if x.device not in self._on_device:
            self._on_device[x.device] = self.log_snr.to(x.device, _wide(x))
        table = self._on_device[x.device]
        time = _as_tensor(t, x)
        place = time.clamp(0, len(table) - 1)
        below = place.long()
        above = (below + 1).clamp(max=len(table) - 1)
        log_snr = torch.lerp(table[below], table[above], place - below)
        log_snr = torch.where(time < 0, torch.inf, log_snr)
        alpha, sigma = (_column(torch.sigmoid(sign * log_snr).sqrt(), x) for sign in (1, -1))
        return alpha, sigma

    def _convert(self, value: Tensor, given: str, wanted: str, x: Tensor, t: Time) -> Tensor:
        if given == wanted:
            return value
        of_x, of_value = _WEIGHTS[given, wanted](*self.alpha_sigma(t, x))
        return (of_x * x + of_value * value).to(value.dtype)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is of flow matching: by its name, or because its network predicts a flow."""
    prediction = getattr(scheduler.config, "prediction_type", None)
    return type(scheduler).__name__.startswith("FlowMatch") or prediction == FLOW


def _as_tensor(t: Time, x: Tensor) -> Tensor:
    return torch.as_tensor(t, device=x.device, dtype=_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _column(values: Tensor, x: Tensor) -> Tensor:
    """One value [], or one a sample [B], to be multiplied with samples [B, ...]; with dimensions, so it promotes."""
    return values.reshape(-1, *[1] * (x.ndim - 1)).to(torch.promote_types(x.dtype, torch.float32))
