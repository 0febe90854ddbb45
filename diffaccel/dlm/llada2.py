"""The cache that diffusers' LLaDA2Pipeline lacks. It is exact: only what could have changed is computed again.

The pipeline runs the model on the whole sequence up to the end of the current block at every step. In a block-causal
model the rows of earlier blocks depend on nothing later, so they are computed again only if a token of them, or of a
block before, was written since. That a model is block-causal is proved, not believed, before the first run.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffaccel.dlm.attaching import TextAcceleration
from diffaccel.dlm.block_rows import cached_call, check_block_causal
from diffaccel.dlm.row_table import RowTable
from diffaccel.dlm.slots import SlotCache
from diffaccel.methods.block_cache import BlockCache
from diffaccel.patch import Patch

_NEEDS = ("input_ids", "attention_mask", "position_ids", "past_key_values")


@dataclass(frozen=True)
class Llada2Report:
    """The last run of the pipeline.

    Attributes:
        rows: rows computed in each forward, a sequence.
        windows: rows the pipeline asked for in each forward, a sequence.
        seconds: each forward took, as the host sees it.
        memory: bytes of the slots.
    """

    rows: tuple[int, ...]
    windows: tuple[int, ...]
    seconds: tuple[float, ...]
    memory: int

    @property
    def cache_ratio(self) -> float:
        """The share of the rows that were not computed."""
        return 1 - sum(self.rows) / sum(self.windows) if self.windows else 0.0

    @property
    def table(self) -> RowTable:
        """Rows of one sequence in each forward; those beyond the window of their time count as reused."""
        table = RowTable(max(self.windows))
        for rows, window in zip(self.rows, self.windows, strict=True):
            places = np.arange(table.length)
            table.add((places >= window - rows) & (places < window))
        return table

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return asdict(self) | {"cache_ratio": self.cache_ratio}

    def __str__(self) -> str:
        if not self.rows:
            return "LLaDA2Pipeline with a cache of finished blocks: no run yet"
        return (
            f"LLaDA2Pipeline with a cache of finished blocks: {len(self.rows)} forwards, {sum(self.rows)} of "
            f"{sum(self.windows)} rows computed ({self.cache_ratio:.1%} from the cache), {sum(self.seconds):.2f} s, "
            f"slots of {self.memory / 2**20:.1f} MiB"
        )


class _Run:
    """What one call of the pipeline has computed so far."""

    def __init__(self, block_length: int) -> None:
        self.block_length = block_length
        self.cache: SlotCache | None = None
        # (batch, positions, 2): the token and the visibility with which each row in the slots was computed.
        self.stored = self.coming = torch.empty(0)
        self.rows: list[int] = []
        self.windows: list[int] = []
        self.seconds: list[float] = []
        self.began, self.memory = 0.0, 0

    def continues(self, tokens: Tensor) -> bool:
        """Whether this may be the pipeline's next call: the same window, or one that is a block longer."""
        batch, window = tokens.shape
        if self.cache is None:
            return window % self.block_length == 0
        same = batch == len(self.stored) and tokens.device == self.stored.device
        return same and window in (self.windows[-1], self.windows[-1] + self.block_length)

    def first_row(self, tokens: Tensor, visible: Tensor) -> int:
        """Rows from here on are computed: those of the first block that was written to, and of all later ones."""
        self.coming = torch.stack((tokens, visible.to(tokens.dtype)), -1)
        last = tokens.shape[1] - self.block_length  # the block whose logits are wanted
        if self.cache is None:
            return 0
        known = min(self.stored.shape[1], tokens.shape[1])
        written = (self.stored[:, :known] != self.coming[:, :known]).any(-1).any(0).nonzero()
        first = int(written[0]) if len(written) else known
        return min(first // self.block_length * self.block_length, last)


class Llada2Session:
    """A LLaDA2Pipeline whose model computes the rows of the current block only, from `attach` to `detach`.

    While attached, the model belongs to the pipeline's call: between set_timesteps and the end of the call, its
    forward gives logits of the computed rows, of which the pipeline reads those of the current block.

    Raises:
        TypeError: no such pipeline, or a model that cannot be given a cache.
    """

    def __init__(self, pipe: Any) -> None:
        model: Any = getattr(pipe, "model", None)
        scheduler: Any = getattr(pipe, "scheduler", None)
        steps = getattr(scheduler, "set_timesteps", None)
        blockwise = steps is not None and "block_length" in inspect.signature(steps).parameters
        if not isinstance(model, nn.Module) or not blockwise:
            raise TypeError(f"{type(pipe).__name__} is no LLaDA2Pipeline: it needs a model and a scheduler of blocks")
        takes = inspect.signature(model.forward).parameters
        if lacking := [name for name in _NEEDS if name not in takes]:
            raise TypeError(f"{type(model).__name__} cannot use a cache: its forward takes no {', '.join(lacking)}")
        self.pipe, self.model, self.scheduler = pipe, model, scheduler
        self._keeps = "logits_to_keep" in takes
        self._proved: set[int] = set()
        self._run: _Run | None = None
        self._done: _Run | None = None
        self._patch: Patch | None = None
        self._hooks: list[RemovableHandle] = []

    def attach(self) -> None:
        """Begin. Calling it again does nothing."""
        if self._patch is not None:
            return
        self._patch = Patch(self.scheduler, "set_timesteps", self._watch)
        # Before other hooks, which may turn the pipeline's mask into one of four dimensions.
        before = self.model.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
        after = self.model.register_forward_hook(self._after)
        self._hooks = [before, after]

    def detach(self) -> None:
        """Put everything back as it was. Calling it again does nothing."""
        if self._patch is not None:
            self._patch.remove()
        for hook in self._hooks:
            hook.remove()
        if self._done is not None:
            self._done.cache = None
        self._patch, self._run, self._hooks = None, None, []

    def report(self) -> Llada2Report:
        """What the last run computed."""
        run = self._done
        if run is None:
            return Llada2Report((), (), (), 0)
        return Llada2Report(tuple(run.rows), tuple(run.windows), tuple(run.seconds), run.memory)

    def _watch(self, real: Any) -> Any:
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            if self._patch is not None:
                given = inspect.signature(real).bind(*args, **kwargs).arguments
                self._begin(given.get("block_length") or self.scheduler.config.block_length)
            return result

        return set_timesteps

    def _begin(self, block_length: int) -> None:
        self._run = None
        if block_length not in self._proved:
            check_block_causal(self.model, block_length)
            self._proved.add(block_length)
        self._run = self._done = _Run(block_length)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.pipe.scheduler is not self.scheduler:
            raise RuntimeError("the pipeline has another scheduler now: detach this session and make a new one")
        run, visible = self._run, kwargs.get("attention_mask")
        tokens = args[0] if args else kwargs.get("input_ids")
        if run is None or len(args) > 1 or tokens is None or kwargs.get("past_key_values") is not None:
            return None
        if visible is None or visible.shape != tokens.shape or not run.continues(tokens):
            return None
        first, window = run.first_row(tokens, visible), tokens.shape[1]
        run.cache = SlotCache(window) if run.cache is None else run.cache
        run.cache.grow(window)
        run.stored = run.coming[:, :first]  # should the forward fail, the others count as never computed
        run.rows.append(window - first)
        run.windows.append(window)
        run.began = time.perf_counter()
        keep = {"logits_to_keep": run.block_length} if self._keeps else {}
        return (), {**kwargs, **keep, **cached_call(model, tokens, visible, first, run.cache, run.block_length)}

    def _after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        run = self._run
        if run is not None and run.cache is not None and len(run.seconds) < len(run.rows):
            run.stored, run.memory = run.coming, run.cache.nbytes
            run.seconds.append(time.perf_counter() - run.began)


class Llada2Acceleration(TextAcceleration):
    """The handle of an accelerated LLaDA2Pipeline; `pipe.acceleration` until it is removed.

    Raises:
        ValueError: another method than block_cache.
        TypeError: as in `Llada2Session`.
    """

    def __init__(self, method: Any, pipe: Any) -> None:
        if not isinstance(method, BlockCache):
            raise ValueError(
                f"{type(method).__name__} cannot accelerate {type(pipe).__name__}, whose blocks are exact in a cache: "
                "use method='block_cache', which loses nothing"
            )
        self.method, self._pipe, self._session = method, pipe, Llada2Session(pipe)
        self._session.attach()
        pipe.acceleration = self

    def report(self) -> Any:
        """The `Llada2Report` of the last run.

        Raises:
            RuntimeError: before the first run.
        """
        report = self._session.report()
        if not report.rows:
            raise RuntimeError("nothing has been decoded since the pipeline was accelerated: call it first")
        return report

    def remove(self) -> None:
        """Take it off. Calling it again does nothing."""
        self._session.detach()
        super().remove()

    def __str__(self) -> str:
        return str(self._session.report())
