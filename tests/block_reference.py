"""Block-wise caching written out by hand, slowly and without diffaccel's runtime: what tests compare that with."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers import Transformer2DModel
from torch import Tensor, nn

from diffaccel.forecast import Forecaster, Hold, Taylor
from diffaccel.plan import Plan
from diffaccel.sites import Site
from tests import policies as p
from tests import tiny
from tests.policy_rdt import RDT
from tests.policy_transformers import DiffusionTransformer, TransformerBlock, TransformerForDiffusion

Rows = Mapping[str, Sequence[int]]
Named = tuple[str, nn.Module, str]  # name of a block, the module whose attribute returns what it adds, the attribute
STEPS = 8


@dataclass(frozen=True)
class Planned:
    """A method whose plan is made by hand, one row a block."""

    rows: Rows
    order: int = 0
    level: ClassVar[str] = "branch"

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        return Plan(tuple(tuple(step in self.rows[site.name] for step in range(steps)) for site in sites))

    def forecaster(self, site: Site, steps: int) -> Forecaster:
        return Taylor(1) if self.order else Hold()


@dataclass
class Block:
    """One block: its outputs at the last two computed steps, and the gate of the last."""

    row: Sequence[int]
    order: int
    kept: list[tuple[int, Tensor]] = field(default_factory=list)
    gate: Tensor | float = 1.0

    def at(self, step: int, compute: Callable[[], tuple[Tensor, Tensor | float]]) -> Tensor:
        """What is added at a step."""
        if step in self.row:
            output, self.gate = compute()
            self.kept = [(step, output), *self.kept][:2]
            return self.gate * output if isinstance(self.gate, Tensor) else output
        newest, output = self.kept[0]
        if self.order and len(self.kept) > 1:
            older, before = self.kept[1]
            output = output + (output - before) * ((step - newest) / (newest - older))
        return self.gate * output if isinstance(self.gate, Tensor) else output


@dataclass(frozen=True)
class Case:
    """A kind of network: how it is made and called, and the blocks a human finds in it."""

    make: Callable[[], nn.Module]
    call: Callable[[nn.Module, Tensor, float], Tensor]
    shape: tuple[int, ...]
    blocks: Callable[[nn.Module], list[Named]]

    def names(self) -> list[str]:
        """Of all blocks."""
        return [name for name, *_ in self.blocks(self.make())]

    def run(self, network: nn.Module, batch: int = 2, before: Callable[[int], Any] = lambda step: None) -> Tensor:
        """Outputs at all steps; the inputs move along a curve, whatever the outputs."""
        generator, found = torch.Generator().manual_seed(5), []
        one, other = (torch.randn(batch, *self.shape, generator=generator) for _ in range(2))
        with torch.no_grad():
            for step in range(STEPS):
                before(step)
                found.append(self.call(network, one + 0.3 * step * other, float(90 - 10 * step)))
        return torch.stack(found)

    def by_hand(self, rows: Rows, order: int = 0, batch: int = 2) -> Tensor:
        """Outputs of a copy of the network in which each block is held or continued by hand."""
        network, now = copy.deepcopy(self.make()), [0]
        held = {name: Block(rows[name], order) for name, *_ in self.blocks(network)}
        for path, module in network.named_modules():
            if isinstance(module, TransformerBlock):
                module.forward = _gated(module, held[f"{path}.sa"], held[f"{path}.ffn"], now)
        for name, owner, attr in self.blocks(network):
            if not isinstance(owner, TransformerBlock):
                setattr(owner, attr, _plain(getattr(owner, attr), held[name], now))
            if isinstance(owner, nn.TransformerEncoderLayer):  # has a fused path past its parts, unless it has a hook
                owner.register_forward_pre_hook(lambda *_: None)
        return self.run(network, batch, lambda step: now.__setitem__(0, step))


def drawn(names: Sequence[str], seed: int, always: str = "") -> dict[str, list[int]]:
    """A random plan, sparse enough that whole layers are idle at times; blocks of kind `always` always compute."""
    dice = random.Random(seed)
    common = [step for step in range(1, STEPS) if dice.random() < 0.3]
    return {
        name: list(range(STEPS))
        if name.rpartition(".")[2] == always
        else sorted({0, *(step for step in common if dice.random() < 0.7), *dice.choices(range(STEPS), k=seed % 2)})
        for name in names
    }


def _plain(real: Callable[..., Any], block: Block, now: list[int]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: block.at(now[0], lambda: (real(*args, **kwargs), 1.0))


def _gated(module: TransformerBlock, first: Block, second: Block, now: list[int]) -> Callable[..., Tensor]:
    """An AdaLN-Zero block: what is kept is the output and its gate, of the same step."""

    def forward(x: Tensor, features: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = module.adaLN_modulation(features)[:, None].chunk(6, -1)

        def attend() -> tuple[Tensor, Tensor]:
            h = module.norm1(x) * (1 + scale1) + shift1
            return (module.attn(h) if module.use_rope else module.multihead_attn(h, h, h)[0]), gate1

        x = x + first.at(now[0], attend)
        return x + second.at(now[0], lambda: (module.mlp(module.norm2(x) * (1 + scale2) + shift2), gate2))

    return forward


def _of_torch(path: str) -> Callable[[nn.Module], list[Named]]:
    parts = {"decoder": ("_sa_block", "_mha_block", "_ff_block"), "encoder": ("_sa_block", "_ff_block")}[path]
    kinds = [{"_sa_block": "sa", "_mha_block": "ca", "_ff_block": "ffn"}[part] for part in parts]
    return lambda network: [
        (f"{path}.layers.{i}.{kind}", layer, part)
        for i, layer in enumerate(network.get_submodule(f"{path}.layers"))
        for kind, part in zip(kinds, parts, strict=True)
    ]


def _of_modules(chains: Sequence[str], **parts: str) -> Callable[[nn.Module], list[Named]]:
    return lambda network: [
        (f"{chain}.{i}.{kind}", getattr(block, part) if part else block, "forward")
        for chain in chains
        for i, block in enumerate(network.get_submodule(chain))
        for kind, part in parts.items()
    ]


def _decoder(post_norm: bool = False, **more: Any) -> nn.Module:
    options = {"n_obs_steps": p.OBSERVED, "cond_dim": p.OBSERVATION, "causal_attn": True} | more
    return _with_norms(TransformerForDiffusion(p.ACTION, p.ACTION, p.HORIZON, **options), post_norm)


def _bert(post_norm: bool = False) -> nn.Module:
    return _with_norms(
        TransformerForDiffusion(p.ACTION, p.ACTION, p.HORIZON, p.OBSERVED, time_as_cond=False), post_norm
    )


def _with_norms(network: nn.Module, post_norm: bool) -> nn.Module:
    for module in network.modules():
        if hasattr(module, "norm_first"):
            module.norm_first = not post_norm
    return p.randomize(network).requires_grad_(False)


def _dit(rope: bool) -> nn.Module:
    return p.randomize(DiffusionTransformer(p.ACTION, p.OBSERVATION, rope=rope)).requires_grad_(False)


def _ada_norm() -> nn.Module:
    """Blocks of diffusers with adaptive norms, as in GR00T's action head."""
    return tiny.randomize(
        Transformer2DModel(
            2, 8, in_channels=16, num_layers=2, norm_num_groups=4, norm_type="ada_norm", num_embeds_ada_norm=100
        )
    )


def _with_cond(network: nn.Module, x: Tensor, t: float) -> Tensor:
    return network(x, torch.tensor(t), 0.1 * torch.ones(len(x), p.OBSERVED, p.OBSERVATION))


def _rdt(network: nn.Module, x: Tensor, t: float) -> Tensor:
    lang, img = (0.1 * torch.ones(len(x), size, 32) for size in (5, 7))
    return network(x, torch.full((len(x),), 25.0), torch.tensor([t]), lang, img, torch.ones(len(x), 5).bool())


_ATTENTIONS = ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0")
_UNET = [f"{path}.transformer_blocks" for path in (*_ATTENTIONS, "up_blocks.1.attentions.1")]
_TOKENS = (p.HORIZON, p.ACTION)

CASES = {
    "decoder": Case(_decoder, _with_cond, _TOKENS, _of_torch("decoder")),
    "decoder-encoded": Case(lambda: _decoder(n_cond_layers=2), _with_cond, _TOKENS, _of_torch("decoder")),
    "decoder-post-norm": Case(lambda: _decoder(post_norm=True), _with_cond, _TOKENS, _of_torch("decoder")),
    "bert": Case(_bert, lambda n, x, t: n(x, torch.tensor(t)), _TOKENS, _of_torch("encoder")),
    "bert-post-norm": Case(
        lambda: _bert(post_norm=True), lambda n, x, t: n(x, torch.tensor(t)), _TOKENS, _of_torch("encoder")
    ),
    **{
        f"dit-{name}": Case(
            lambda rope=rope: _dit(rope),
            lambda n, x, t: n(x, torch.full((len(x),), t), 0.1 * torch.ones(len(x), p.OBSERVATION)),
            _TOKENS,
            _of_modules(["transformer_blocks"], sa="", ffn=""),
        )
        for name, rope in (("rotary", True), ("multihead", False))
    },
    "rdt": Case(
        lambda: p.randomize(RDT(p.ACTION, p.HORIZON, depth=3)).requires_grad_(False),
        _rdt,
        (p.HORIZON + 1, 32),
        _of_modules(["blocks"], sa="attn", ca="cross_attn", ffn="ffn"),
    ),
    "unet": Case(
        tiny.unet,
        lambda n, x, t: n(x, t, 0.1 * torch.ones(len(x), 6, tiny.TEXT_WIDTH))[0],
        (4, 8, 8),
        _of_modules(_UNET, sa="attn1", ca="attn2", ffn="ff"),
    ),
    "ada-norm": Case(
        _ada_norm,
        lambda n, x, t: n(x, timestep=torch.tensor(int(t)), return_dict=False)[0],
        (16, 4, 4),
        _of_modules(["transformer_blocks"], sa="attn1", ffn="ff"),
    ),
}
"""Every kind of layer that is known."""
