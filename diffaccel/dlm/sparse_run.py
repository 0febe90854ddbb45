"""SparseD's state over one generation: which step is dense or sparse, and the pattern of each layer and sequence."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from diffaccel.dlm import flex
from diffaccel.dlm.block_attention import gathered_attention, token_attention
from diffaccel.dlm.patterns import build_pattern, check_rho, first_generation_block, fit, schedule

BACKENDS = ("auto", "gather", "sdpa", "flex")
_FLEX_FROM = 2048  # positions from which "auto" takes FlexAttention, on CUDA


class SparseRun:
    """One generation of a batch, whose row i holds prompt[i] + generated[i] positions from 0 on, then padding.

    Patterns are built once (rebuilding them at every step is slow and no better, says the paper) and kept per layer and
    sequence, so sequences may leave the batch. Each takes heads * (length / block_size) ** 2 bytes, nine times as
    much again where FlexAttention runs.

    Args:
        steps: denoising steps of the generation.
        prompt: prompt positions of each sequence.
        generated: positions to generate of each.
        block_size: 32 for short tasks and 128 for long contexts in the paper.
        rho: share of key blocks kept: .5 for short tasks, .3 for long contexts in the paper.
        skip: share of the steps that are dense.
        form: "paper" or "released", see `diffaccel.dlm.patterns`.
        backend: "flex" skips what is not attended to, in compiled code; "gather" copies what is attended to; "sdpa"
            computes all and masks, which is slower than dense. "auto" is gather on CPUs; on CUDA flex from 2,048
            positions on; else sdpa. All give the same up to rounding.

    Attributes:
        schedule: dense steps, the step that builds the pattern, sparse steps.
        seconds: spent on building patterns so far.

    Raises:
        ValueError: a number out of range, an unknown form or backend.
    """

    def __init__(
        self,
        *,
        steps: int,
        prompt: Sequence[int],
        generated: Sequence[int],
        block_size: int = 32,
        rho: float = 0.5,
        skip: float = 0.2,
        form: str = "paper",
        backend: str = "auto",
    ) -> None:
        self.schedule = schedule(steps, skip, form)
        check_rho(rho)
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
        if not prompt or len(prompt) != len(generated):
            raise ValueError(f"one prompt and one generated length per sequence, got {len(prompt)}, {len(generated)}")
        for p, g in zip(prompt, generated, strict=True):
            first_generation_block(p, g, block_size)
        self.steps, self.prompt, self.generated = steps, tuple(prompt), tuple(generated)
        self.block_size, self.rho, self.form, self.backend = block_size, rho, form, backend
        self.seconds = 0.0
        self._totals = tuple(p + g for p, g in zip(prompt, generated, strict=True))
        self._lanes: tuple[int, ...] = tuple(range(len(prompt)))
        self._mode: str | None = None
        self._patterns: WeakKeyDictionary[nn.Module, dict[int, Tensor]] = WeakKeyDictionary()
        self._tiles: WeakKeyDictionary[nn.Module, flex.Tiles] = WeakKeyDictionary()
        self._checked: weakref.ref[Tensor] | None = None

    @property
    def density(self) -> float | None:
        """Kept blocks over all blocks of the sequences, over all layers and heads; None before a pattern is built."""
        kept = blocks = 0
        for lanes in self._patterns.values():
            for lane, pattern in lanes.items():
                n = self._blocks(self._totals[lane])
                kept, blocks = kept + int(pattern[:, :n, :n].sum()), blocks + len(pattern) * n * n
        return kept / blocks if blocks else None

    @property
    def nbytes(self) -> int:
        """Memory of the patterns, without FlexAttention's lists."""
        return sum(pattern.nbytes for lanes in self._patterns.values() for pattern in lanes.values())

    def begin(self, step: int, lanes: Tensor | Sequence[int] | None = None, rebuild: bool = False) -> None:
        """Before each forward.

        Args:
            step: of the generation, from 0.
            lanes: the sequence in each row of the forward, all in order by default; one may be there more than once.
            rebuild: make this step a dense one that builds the pattern anew.

        Raises:
            ValueError: a step or a lane that the run does not have, or a lane twice in a step that builds patterns.
        """
        if not 0 <= step < self.steps:
            raise ValueError(f"step must be from 0 to {self.steps - 1}, got {step}")
        everyone = tuple(range(len(self.prompt)))
        chosen = everyone if lanes is None else tuple(lanes.tolist() if isinstance(lanes, Tensor) else lanes)
        if not chosen or not set(chosen) <= set(everyone):
            raise ValueError(f"lanes must be from 0 to {everyone[-1]}, and one at least, got {list(chosen)}")
        if rebuild or step == self.schedule.pattern_step:
            if len(set(chosen)) < len(chosen):
                raise ValueError(f"step {step} builds patterns: a sequence may be there once only, got {list(chosen)}")
            self._mode = "pattern"
        else:
            self._mode = "dense" if step < self.schedule.full_steps else "sparse"
        if chosen != self._lanes or self._mode == "pattern":
            self._tiles.clear()
        self._lanes, self._checked = chosen, None

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor | None:
        """Sparse attention of one layer, (batch, heads, length, d); None where it is to be dense.

        Args:
            module: the layer's attention, the key to its patterns.
            query: rotated queries, (batch, heads, length, d).
            key: rotated keys, (batch, kv_heads, length, d).
            value: (batch, kv_heads, length, d).
            mask: that of transformers, (batch, 1, length, length), bool or additive; it must be that of the padding.
            scale: of the scores.

        Raises:
            ValueError: a row subset, or a mask or shapes that are not those of the run's sequences.
            RuntimeError: no step has begun, or this layer or sequence has no pattern yet.
        """
        self._check(query, key, mask)
        if self._mode == "pattern":
            self._build(module, query, key, scale)
        if self._mode != "sparse":
            return None
        length, totals = query.shape[2], self._lane_totals(query.device)
        if module in self._tiles and self._tiles[module].pattern.shape[-1] == self._blocks(length):
            return flex.attend(query, key, value, self._tiles[module], scale)
        pattern = self._pattern(module, length)
        backend = self._chosen(query.device, length)
        if backend != "flex":
            attention = gathered_attention if backend == "gather" else token_attention
            return attention(query, key, value, pattern, totals, self.block_size, scale)
        self._tiles[module] = flex.tiles(pattern, totals, self.block_size)
        return flex.attend(query, key, value, self._tiles[module], scale)

    def _build(self, module: nn.Module, query: Tensor, key: Tensor, scale: float) -> None:
        start = _seconds(query.device)
        prompt, generated = [self.prompt[i] for i in self._lanes], [self.generated[i] for i in self._lanes]
        patterns = build_pattern(query, key, scale, prompt, generated, self.block_size, self.rho, self.form)
        self._patterns.setdefault(module, {}).update(zip(self._lanes, patterns.unbind(), strict=True))
        self.seconds += _seconds(query.device) - start

    def _pattern(self, module: nn.Module, length: int) -> Tensor:
        built = self._patterns.get(module, {})
        if absent := sorted(set(self._lanes) - set(built)):
            raise RuntimeError(
                f"sequences {absent} have no pattern yet: run step {self.schedule.pattern_step} with them first, "
                "or begin this step with rebuild=True"
            )
        return torch.stack([fit(built[lane], self._blocks(length)) for lane in self._lanes])

    def _check(self, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        if self._mode is None:
            raise RuntimeError("no step has begun: call run.begin(step) before each forward")
        batch, _, length, _ = query.shape
        if key.shape[2] != length:
            raise ValueError(
                f"{length} rows against {key.shape[2]} keys: SparseD needs all rows of a sequence in every forward, so "
                "it cannot be combined with a cache that computes some of them"
            )
        totals = [self._totals[lane] for lane in self._lanes]
        if batch != len(totals) or max(totals) > length:
            raise ValueError(f"{batch} rows of {length} positions, but the sequences have {totals} positions")
        if mask is None:
            if min(totals) < length:
                raise ValueError(
                    f"sequences of {totals} positions are padded to {length}: pass an attention_mask that says so"
                )
        elif self._checked is None or self._checked() is not mask:
            seen = (mask if mask.dtype == torch.bool else mask > -1)[:, :, (0, -1)]
            valid = torch.arange(length, device=mask.device) < self._lane_totals(mask.device)[:, None]
            if not bool((seen == valid[:, None, None]).all()):
                raise ValueError(
                    f"the attention_mask is not that of sequences of {totals} positions: they must stand on the left, "
                    "padding on the right, and every position must see all of them"
                )
            self._checked = weakref.ref(mask)

    def _chosen(self, device: torch.device, length: int) -> str:
        if self.backend != "auto":
            return self.backend
        if device.type == "cpu":
            return "gather"
        return "flex" if device.type == "cuda" and length >= _FLEX_FROM and flex.missing(device) is None else "sdpa"

    def _lane_totals(self, device: torch.device) -> Tensor:
        return torch.tensor([self._totals[lane] for lane in self._lanes], device=device)

    def _blocks(self, length: int) -> int:
        return -(-length // self.block_size)


def _seconds(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
