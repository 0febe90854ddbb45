"""The transformer of Diffusion Policy (arXiv:2303.04137), with the parameter names of its published checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class TransformerForDiffusion(ModelMixin, ConfigMixin):
    """Predicts the noise of a trajectory of actions from observations.

    Trajectory tokens attend to each other and to condition tokens: one of the time, one of each observation. Without
    condition tokens (`time_as_cond=False`) the time is a first token of the trajectory, and there is an encoder only.

    Args:
        input_dim: size of an action.
        output_dim: size of what is predicted for each.
        horizon: actions in a trajectory.
        n_obs_steps: observations given; as many as actions if None.
        cond_dim: size of an observation; 0 for a network without observations.
        n_layer: layers.
        n_head: attention heads.
        n_emb: width.
        p_drop_emb: dropout of embeddings, in training.
        p_drop_attn: dropout inside layers, in training.
        causal_attn: let tokens attend to those before them only.
        time_as_cond: whether the time is a condition token.
        n_cond_layers: transformer layers over the condition tokens; 0 for two linear ones.

    Raises:
        ValueError: observations without a condition token of the time.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int | None = None,
        cond_dim: int = 0,
        n_layer: int = 12,
        n_head: int = 12,
        n_emb: int = 768,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        time_as_cond: bool = True,
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__()
        if cond_dim > 0 and not time_as_cond:
            raise ValueError("observations (cond_dim > 0) need time_as_cond=True")
        self.encoder_only = not time_as_cond
        tokens = horizon + self.encoder_only
        conditions = 0 if self.encoder_only else 1 + (n_obs_steps or horizon) * (cond_dim > 0)

        self.input_emb = nn.Linear(input_dim, n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, tokens, n_emb))
        self.drop = nn.Dropout(p_drop_emb)
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if cond_dim > 0 else None
        self.cond_pos_emb = None if self.encoder_only else nn.Parameter(torch.zeros(1, conditions, n_emb))

        layer: dict[str, Any] = {"d_model": n_emb, "nhead": n_head, "dim_feedforward": 4 * n_emb}
        layer |= {"dropout": p_drop_attn, "activation": "gelu", "batch_first": True, "norm_first": True}
        if self.encoder_only or n_cond_layers > 0:
            one = nn.TransformerEncoderLayer(**layer)
            depth = n_layer if self.encoder_only else n_cond_layers
            self.encoder: nn.Module = nn.TransformerEncoder(one, depth, enable_nested_tensor=False)
        else:
            self.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        self.decoder = None
        if not self.encoder_only:
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), n_layer)

        self.register_buffer("mask", _additive(_no_later(tokens, tokens, 0)) if causal_attn else None)
        # The time comes first among the condition tokens, so token t sees it and the observations up to t.
        sees = causal_attn and cond_dim > 0
        self.register_buffer("memory_mask", _additive(_no_later(tokens, conditions, 1)) if sees else None)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, output_dim)
        self._reset()

    def forward(self, sample: Tensor, timestep: Tensor | float | int, cond: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            sample: noisy trajectories, shape (batch, horizon, input_dim).
            timestep: one for all, or shape (batch,).
            cond: observations, shape (batch, n_obs_steps, cond_dim).

        Returns:
            Shape (batch, horizon, output_dim).
        """
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        time = self.time_emb(times).to(sample.dtype)[:, None]
        trajectory = self.input_emb(sample)
        if self.decoder is None or self.cond_pos_emb is None:
            tokens = torch.cat([time, trajectory], dim=1)
            hidden = self.encoder(self.drop(tokens + self.pos_emb[:, : tokens.shape[1]]), mask=self.mask)[:, 1:]
        else:
            given = time if self.cond_obs_emb is None else torch.cat([time, self.cond_obs_emb(cond)], dim=1)
            memory = self.encoder(self.drop(given + self.cond_pos_emb[:, : given.shape[1]]))
            tokens = self.drop(trajectory + self.pos_emb[:, : trajectory.shape[1]])
            hidden = self.decoder(tgt=tokens, memory=memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        predicted: Tensor = self.head(self.ln_f(hidden))
        return predicted

    def _reset(self) -> None:
        """Weights and positions normal with deviation .02, biases 0, as published."""
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                nn.init.normal_(module.in_proj_weight, std=0.02)
                nn.init.zeros_(module.in_proj_bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for positions in (self.pos_emb, self.cond_pos_emb):
            if positions is not None:
                nn.init.normal_(positions, std=0.02)


class SinusoidalPosEmb(nn.Module):
    """Times as sines, then cosines, at wavelengths that grow geometrically up to 10,000.

    Args:
        dim: size of an embedding, even.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, times: Tensor) -> Tensor:
        """Times (batch,) to shape (batch, dim)."""
        half = self.dim // 2
        rates = torch.exp(torch.arange(half, device=times.device) * (-math.log(10_000) / (half - 1)))
        angles = times[:, None] * rates[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _no_later(rows: int, columns: int, free: int) -> Tensor:
    """Whether token t (row) may see column s: not later than itself, the first `free` columns not counted."""
    return torch.arange(rows)[:, None] >= torch.arange(columns)[None] - free


def _additive(allowed: Tensor) -> Tensor:
    """A mask that is added to attention scores."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
