"""The policy of thu-ml/RoboticsDiffusionTransformer (RDT): blocks of attention, cross-attention and MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from tests.policy_transformers import ACTION, HORIZON, SCHEDULE, SinusoidalPosEmb, randomize


class Attention(nn.Module):
    """Self-attention as in timm: `qkv`, normed queries and keys, `proj`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = nn.RMSNorm(dim // num_heads), nn.RMSNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """RDT's attention to conditions: `q`, `kv`, `proj`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = nn.RMSNorm(dim // num_heads), nn.RMSNorm(dim // num_heads)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(c).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None].expand(-1, 1, x.shape[1], -1)
        attended = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=seen)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """timm's `fc1`, `act`, `fc2`."""

    def __init__(self, dim: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, dim), nn.GELU("tanh"), nn.Linear(dim, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class RDTBlock(nn.Module):
    """RDT's pre-norm block: `attn`, `cross_attn`, `ffn`."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(hidden_size, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.norm2 = nn.RMSNorm(hidden_size, eps=1e-6)
        self.ffn = Mlp(hidden_size)
        self.norm3 = nn.RMSNorm(hidden_size, eps=1e-6)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.attn(self.norm1(x)) + x
        x = self.cross_attn(self.norm2(x), c, mask) + x
        return self.ffn(self.norm3(x)) + x


class RDT(nn.Module):
    """RDT's network: blocks attend to language and pictures in turn."""

    def __init__(
        self, output_dim: int, horizon: int, hidden_size: int = 32, depth: int = 4, num_heads: int = 4
    ) -> None:
        super().__init__()
        self.horizon, self.hidden_size = horizon, hidden_size
        self.t_embedder = nn.Sequential(SinusoidalPosEmb(16), nn.Linear(16, hidden_size))
        self.freq_embedder = nn.Sequential(SinusoidalPosEmb(16), nn.Linear(16, hidden_size))
        self.x_pos_embed = nn.Parameter(0.1 * torch.randn(1, horizon + 3, hidden_size))
        self.blocks = nn.ModuleList(RDTBlock(hidden_size, num_heads) for _ in range(depth))
        self.final_layer = nn.Sequential(nn.RMSNorm(hidden_size), Mlp(hidden_size, output_dim))

    def forward(
        self,
        x: Tensor,
        freq: Tensor,
        t: Tensor,
        lang_c: Tensor,
        img_c: Tensor,
        lang_mask: Tensor | None = None,
        img_mask: Tensor | None = None,
    ) -> Tensor:
        given = [self.t_embedder(t).expand(len(x), -1), self.freq_embedder(freq)]
        x = torch.cat([*(token[:, None] for token in given), x], 1) + self.x_pos_embed
        for i, block in enumerate(self.blocks):
            x = block(x, (lang_c, img_c)[i % 2], (lang_mask, img_mask)[i % 2])
        return self.final_layer(x)[:, -self.horizon :]


class RDTRunner(nn.Module):
    """RDT's policy: adaptors, network, DPM-Solver."""

    def __init__(self, calls: int = 5, depth: int = 4) -> None:
        super().__init__()
        self.model = RDT(ACTION, HORIZON, depth=depth)
        width = self.model.hidden_size
        self.lang_adaptor, self.img_adaptor = nn.Linear(12, width), nn.Linear(10, width)
        self.state_adaptor = nn.Linear(2 * ACTION, width)
        self.noise_scheduler = DDPMScheduler(**SCHEDULE)
        self.noise_scheduler_sample = DPMSolverMultistepScheduler(**SCHEDULE)
        self.num_inference_timesteps = calls
        randomize(self).requires_grad_(False)

    def conditional_sample(
        self, lang: Tensor, lang_mask: Tensor, img: Tensor, state: Tensor, action_mask: Tensor, freq: Tensor
    ) -> Tensor:
        noisy, mask = torch.randn(len(state), HORIZON, ACTION), action_mask.expand(-1, HORIZON, -1)
        self.noise_scheduler_sample.set_timesteps(self.num_inference_timesteps)
        for t in self.noise_scheduler_sample.timesteps:
            tokens = torch.cat([state, self.state_adaptor(torch.cat([noisy, mask], 2))], 1)
            predicted = self.model(tokens, freq, t.unsqueeze(-1), lang, img, lang_mask=lang_mask)
            noisy = self.noise_scheduler_sample.step(predicted, t, noisy).prev_sample
        return noisy * mask

    @torch.no_grad()
    def predict_action(
        self, lang: Tensor, lang_mask: Tensor, img: Tensor, state: Tensor, action_mask: Tensor, freq: Tensor
    ) -> Tensor:
        state = self.state_adaptor(torch.cat([state, action_mask], 2))
        return self.conditional_sample(
            self.lang_adaptor(lang), lang_mask, self.img_adaptor(img), state, action_mask, freq
        )
