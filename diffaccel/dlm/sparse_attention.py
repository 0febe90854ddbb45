"""SparseD in any bidirectional decoder of transformers: dense steps, a pattern from the last of them, sparse steps.

    run = SparseRun(steps=128, prompt=[900], generated=[124])
    with sparse(model, run):
        for step in range(128):
            run.begin(step)
            logits = model(tokens).logits

Dense steps call the attention that the model had before, so they are what they were to the last bit. Source and forms
of the patterns: `diffaccel.dlm.patterns`.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from diffaccel.dlm import flex
from diffaccel.dlm.sparse_run import SparseRun

__all__ = ["SparseRun", "sparse"]

_PREFIX = "diffaccel_sparsed_"
_DENSE = ("sdpa", "eager")
_OTHER_MASKS = ("sliding_window", "softcap", "s_aux", "position_bias")

# Which run a module is in, for the time of `sparse` only.
_runs: WeakKeyDictionary[nn.Module, SparseRun] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def sparse(model: PreTrainedModel, run: SparseRun) -> Iterator[None]:
    """Attention of `model` follows `run` inside of the block; afterwards, also after an error, it is what it was.

    Raises:
        RuntimeError: the model, or the run, is in such a block already, or FlexAttention is asked for and cannot run.
        ValueError: a model whose attention is neither "sdpa" nor "eager", or cannot be set.
    """
    before = _implementation(model)
    if run.backend == "flex" and (reason := flex.missing(model.device)):
        raise RuntimeError(f"FlexAttention cannot be compiled: {reason}")
    modules = list(model.modules())
    with _lock:
        if run in _runs.values() or any(module in _runs for module in modules):
            raise RuntimeError("this model or this run is in a sparse block already: finish that generation first")
        _runs.update(dict.fromkeys(modules, run))
    try:
        model.set_attn_implementation(_registered(before))
        if model.config._attn_implementation == before:
            raise ValueError(
                f"{type(model).__name__} computes attention by itself: load its weights into a native class"
            )
        yield
    finally:
        model.set_attn_implementation(before)
        with _lock:
            for module in modules:
                _runs.pop(module, None)


def _implementation(model: PreTrainedModel) -> str:
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model must be a PreTrainedModel of transformers, not wrapped or compiled, got {name}")
    names = {m.config._attn_implementation for m in model.modules() if isinstance(m, PreTrainedModel)}
    before = str(names.pop()) if len(names) == 1 else "mixed"
    if before.startswith(_PREFIX):
        raise RuntimeError(f"{name} is in a sparse block already, or shares its config with a model that is")
    if before not in _DENSE:
        raise ValueError(f"{name} has attention {before!r}: load it with attn_implementation='sdpa'")
    return before


def _registered(before: str) -> str:
    """The name under which transformers knows our attention over the dense attention `before`."""
    name = _PREFIX + before
    if name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, functools.partial(_attention, before))
        # Without a mask function of the same name, transformers would pass no mask at all, and padding would be lost.
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    return name


def _attention(
    before: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in every layer. query (batch, heads, length, d), key and value (batch, kv_heads, ...)."""
    run = _runs.get(module)
    if run is not None:  # None: another model that shares the config
        _check_options(module, options)
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        attended = run.attend(module, query, key, value, attention_mask, scale)
        if attended is not None:
            return attended.transpose(1, 2).contiguous(), None
    return _dense(before, module)(module, query, key, value, attention_mask, **options)


def _dense(before: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(before, eager)
    return function


def _check_options(module: nn.Module, options: dict[str, Any]) -> None:
    causal = options.get("is_causal")
    if getattr(module, "is_causal", True) if causal is None else causal:
        raise ValueError("SparseD needs a model that sees both sides: set model.config.is_causal = False first")
    if options.get("dropout"):
        raise ValueError("attention dropout is on: call model.eval() first")
    if found := [name for name in _OTHER_MASKS if options.get(name) is not None]:
        raise ValueError(f"{type(module).__name__} changes its attention by {', '.join(found)}: SparseD cannot")
