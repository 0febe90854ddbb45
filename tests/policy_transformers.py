"""Transformers of other projects' diffusion policies, rebuilt with their parameter names, signatures and layouts.

Nothing here imports diffaccel: what is found in these networks is found by structure. Sources of the layouts:
real-stanford/diffusion_policy (`TransformerForDiffusion`), huggingface/lerobot (`multi_task_dit`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HORIZON, OBSERVED, EXECUTED, OBSERVATION, ACTION = 8, 2, 4, 6, 3
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
}


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere: some layers begin at zero, which hides errors in features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel():
                scale = 0.1 if parameter.ndim < 2 else 0.1 + max(1, parameter.shape[1:].numel()) ** -0.5
                offset = float(parameter.ndim == 1 and bool((parameter == 1).all()))
                parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


class SinusoidalPosEmb(nn.Module):
    """Sines, then cosines, of times (batch,)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        rates = torch.arange(self.dim // 2, device=x.device).mul(-math.log(10000) / (self.dim // 2 - 1)).exp()
        return torch.cat([(x[:, None] * rates).sin(), (x[:, None] * rates).cos()], -1)


class TransformerForDiffusion(nn.Module):
    """real-stanford's transformer: a decoder over condition tokens, or an encoder only ("BERT")."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int,
        cond_dim: int = 0,
        n_layer: int = 2,
        n_head: int = 4,
        n_emb: int = 32,
        causal_attn: bool = False,
        time_as_cond: bool = True,
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__()
        self._dummy_variable = nn.Parameter()  # by which their mixin tells device and dtype
        tokens, memory = horizon + (not time_as_cond), time_as_cond + n_obs_steps * (cond_dim > 0)
        self.input_emb = nn.Linear(input_dim, n_emb)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(1, tokens, n_emb))
        self.drop = nn.Dropout(0.0)
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if cond_dim else None
        sizes: dict[str, Any] = {"d_model": n_emb, "nhead": n_head, "dim_feedforward": 4 * n_emb, "dropout": 0.0}
        sizes |= {"activation": "gelu", "batch_first": True, "norm_first": True}
        self.cond_pos_emb = nn.Parameter(0.02 * torch.randn(1, memory, n_emb)) if time_as_cond else None
        self.decoder = None
        if time_as_cond:
            self.encoder: nn.Module = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
            if n_cond_layers:
                self.encoder = nn.TransformerEncoder(
                    nn.TransformerEncoderLayer(**sizes), n_cond_layers, enable_nested_tensor=False
                )
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes), n_layer)
        else:
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**sizes), n_layer, enable_nested_tensor=False
            )
        self.mask = self.memory_mask = None
        if causal_attn:
            del self.mask, self.memory_mask
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(tokens))
            late = torch.arange(tokens)[:, None] < torch.arange(memory)[None] - 1
            with_memory = time_as_cond and cond_dim > 0
            self.register_buffer(
                "memory_mask", torch.zeros(late.shape).masked_fill(late, -math.inf) if with_memory else None
            )
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, output_dim)

    def forward(
        self, sample: Tensor, timestep: Tensor | float | int, cond: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        times = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        time = self.time_emb(times).unsqueeze(1)
        x = self.input_emb(sample)
        if self.decoder is None:
            return self.head(self.ln_f(self.encoder(torch.cat([time, x], 1) + self.pos_emb, mask=self.mask)[:, 1:]))
        memory = time if self.cond_obs_emb is None else torch.cat([time, self.cond_obs_emb(cond)], 1)
        memory = self.encoder(self.drop(memory + self.cond_pos_emb[:, : memory.shape[1]]))
        x = self.drop(x + self.pos_emb[:, : x.shape[1]])
        x = self.decoder(tgt=x, memory=memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        return self.head(self.ln_f(x))


class RotaryAttention(nn.Module):
    """Self-attention with rotary positions, `qkv_proj` and `out_proj`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        rates = 10000 ** -(torch.arange(0, width // heads, 2) / (width // heads))
        self.register_buffer("inv_freq", rates, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        angles = torch.outer(torch.arange(x.shape[1], device=x.device), self.inv_freq).repeat(1, 2)

        def rotated(value: Tensor) -> Tensor:
            first, second = value.chunk(2, -1)
            return value * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

        return self.out_proj(F.scaled_dot_product_attention(rotated(q), rotated(k), v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """lerobot's AdaLN-Zero block: `attn` with rotary positions, or `multihead_attn`."""

    def __init__(self, hidden_size: int, num_heads: int, num_features: int, use_rope: bool) -> None:
        super().__init__()
        self.use_rope = use_rope
        if use_rope:
            self.attn = RotaryAttention(hidden_size, num_heads)
        else:
            self.multihead_attn = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU("tanh"), nn.Linear(4 * hidden_size, hidden_size)
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(num_features, 6 * hidden_size))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(features)[:, None].chunk(6, -1)
        h = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * (self.attn(h) if self.use_rope else self.multihead_attn(h, h, h)[0])
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiffusionTransformer(nn.Module):
    """lerobot's `noise_predictor`."""

    def __init__(
        self,
        action_dim: int,
        conditioning_dim: int,
        width: int = 32,
        heads: int = 4,
        layers: int = 3,
        rope: bool = True,
    ) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(SinusoidalPosEmb(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU())
        self.input_proj = nn.Linear(action_dim, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, 16 + conditioning_dim, rope) for _ in range(layers)
        )
        self.output_proj = nn.Linear(width, action_dim)

    def forward(self, x: Tensor, timestep: Tensor, conditioning_vec: Tensor) -> Tensor:
        features = torch.cat([self.time_mlp(timestep), conditioning_vec], -1)
        x = self.input_proj(x)
        for block in self.transformer_blocks:
            x = block(x, features)
        return self.output_proj(x)
