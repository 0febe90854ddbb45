"""What every method for diffusion language models promises, on every family of models: it runs, or says why it cannot.

Caches are compared with a slow decoder written here, which keeps keys and values by position in a dictionary and hands
those that are reused to the model in an ordinary cache, in front of the rows that are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from diffaccel import accelerate_pipeline
from diffaccel.methods.dkv import Dkv
from diffaccel.methods.fast_dllm import FastDllm
from diffaccel.methods.sparsed import SparseD
from diffaccel.methods.ssd import Ssd
from tests.dlm.tiny import FAMILIES, MASK, PROMPTS, pipeline

LONG = [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0]
BATCH = [*PROMPTS[:2], LONG]
BLOCK = {"block_size": 4}

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "decode": ("dkv", {"refresh": 3, "full_above": 1.0}),
    "decode, paper": ("dkv", {"refresh": 4, "form": "paper"}),
    "decode, un": ("dkv", {"refresh": 3, "shift": "un", "full_above": 1.0}),
    "decode, right": ("dkv", {"refresh": 3, "shift": "right", "full_above": 1.0}),
    "greedy": ("dkv", {"variant": "greedy"}),
    "greedy, previous": ("dkv", {"variant": "greedy", "refresh": 4, "window": 1, "center": "previous"}),
    "prefill": ("dkv", {"variant": "prefill"}),
    "pd": ("dkv", {"variant": "pd", "refresh": 3}),
    "interval": ("dkv", {"variant": "interval", "refresh": 3}),
    "dual": ("fast_dllm", {"threshold": None}),
    "prefix": ("fast_dllm", {"threshold": None, "cache": "prefix"}),
    "threshold": ("fast_dllm", {"threshold": 0.3, "cache": None}),
    "factor and dual": ("fast_dllm", {"factor": 1.2}),
    "block_cache": ("block_cache", {}),
    "sparsed": ("sparsed", {**BLOCK, "rho": 0.3}),
    "sparsed, released": ("sparsed", {**BLOCK, "rho": 0.3, "form": "released", "backend": "sdpa"}),
    "ssd": ("ssd", {"draft": 3}),
    "ssd, interval": ("ssd", {"draft": 2, "cache": Dkv("interval", refresh=3)}),
    "ssd, prefill": ("ssd", {"draft": 3, "cache": "prefill"}),
    "ssd, dual": ("ssd", {"draft": 2, "cache": "dual"}),
    "ssd, dual and threshold": ("ssd", {"draft": 2, "cache": FastDllm("dual", threshold=0.3)}),
    "ssd, block_cache": ("ssd", {"draft": 3, "cache": "block_cache"}),
    "ssd, one by one": ("ssd", {"draft": 2, "cache": "prefix", "one_by_one": True}),
}
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "guidance": {"cfg_scale": 1.0, "block_length": 4, "num_inference_steps": 4},
    "temperature": {"temperature": 0.8},
    "random": {"remasking": "random"},
    "entropy": {"remasking": "entropy", "num_inference_steps": 4},
}


def _reason(family: str, name: str, call: str) -> str | None:
    """Part of the error if the method must refuse this."""
    method = METHODS[name][0]
    keeps_rows = method == "dkv" or name in ("dual", "prefix", "factor and dual")
    keeps_rows |= method == "ssd" and name not in ("ssd", "ssd, block_cache")
    if family == "blocks" and (keeps_rows or method == "sparsed"):
        return "causal between blocks"
    if family != "blocks" and "block_cache" in name:
        return "causal between blocks"
    if "greedy" in name and family == "dream":
        return "row p predicts position p"
    if "greedy" in name and call != "random":
        return "call the pipeline with remasking='random'"
    if method == "ssd" and call == "temperature":
        return "which chance does not allow"
    if ("threshold" in name or "factor" in name) and call in ("random", "entropy"):
        return "how sure the model is"
    return None


def _tokens(output: Any) -> list[list[int]]:
    return [sequence.tolist() for sequence in output.sequences]


def _run(pipe: Any, prompts: list[list[int]], first: int = 0, **how: Any) -> Any:
    generators = [torch.Generator().manual_seed(first + number) for number in range(len(prompts))]
    return pipe(prompts, generator=generators, **how)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES[1:])  # the first is the second with more heads
def test_it_runs_for_each_prompt_as_alone_or_says_why_not(family: str, name: str, call: str) -> None:
    pipe, how, (method, options) = pipeline(family), CALLS[call], METHODS[name]
    calls: list[int] = []
    pipe.model.register_forward_pre_hook(lambda *_: calls.append(1))
    reason = _reason(family, name, call)
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            _run(accelerate_pipeline(pipe, method, **options), BATCH, **how)
        assert not calls
        return
    accelerate_pipeline(pipe, method, **options)
    together = _run(pipe, BATCH, **how)
    assert all(MASK not in one for one in _tokens(together))
    assert 0 < together.report.rows <= together.report.whole
    assert together.report.tokens <= 8 * len(BATCH)
    for number in (1, 2):  # the shortest and the longest
        assert _tokens(_run(pipe, BATCH[number : number + 1], number, **how))[0] == _tokens(together)[number]


EXACT: dict[str, tuple[Any, dict[str, Any]]] = {
    "decode at every step": (Dkv(refresh=1), {}),
    "interval at every step": (Dkv("interval", refresh=1), {}),
    "greedy at every step": (Dkv("greedy", refresh=1), {"remasking": "random"}),
    "all key blocks": (SparseD(rho=1.0, block_size=4), {}),
    "all key blocks, released": (SparseD(rho=1.0, block_size=4, form="released", backend="sdpa"), {}),
    "a threshold nothing reaches": (FastDllm(cache=None, threshold=1.0), {}),
    "ssd": (Ssd(draft=3), {}),
    "ssd, blocks": (Ssd(draft=3), {"block_length": 4, "num_inference_steps": 4}),
    "ssd, guidance": (Ssd(draft=2), {"cfg_scale": 1.0}),
    "ssd, random": (Ssd(draft=3), {"remasking": "random"}),
    "ssd, threshold": (Ssd(draft=2), {"threshold": 0.3}),
    "ssd, entropy": (Ssd(draft=5), {"remasking": "entropy", "num_inference_steps": 4}),
    "ssd, one by one": (Ssd(draft=3, one_by_one=True), {}),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("family", ["llada", "gqa", "dream"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_where_it_must_be_exact_it_is(family: str, name: str, attention: str) -> None:
    method, how = EXACT[name]
    how = {"eos_early_stop": False} | how
    if family == "dream" and name in ("greedy at every step", "a threshold nothing reaches"):
        pytest.skip("refused, and a step of Dream may decode none or two")
    pipe = pipeline(family)
    pipe.model.set_attn_implementation(attention)
    plain = _run(pipe, BATCH, **how)
    accelerate_pipeline(pipe, method)
    found = _run(pipe, BATCH, **how)
    assert _tokens(found) == _tokens(plain)
    if isinstance(method, Ssd):
        assert sum(found.report.accepted) == len(BATCH) * plain.report.forwards or how.get("threshold")
        assert method.one_by_one or found.report.forwards <= plain.report.forwards
        assert found.report.margin > 1e-9


@pytest.mark.parametrize(
    "how", [{}, {"cfg_scale": 1.0}, {"temperature": 0.8}, {"threshold": 0.4}, {"remasking": "entropy"}]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_cache_of_finished_blocks_is_exact(how: dict[str, Any], attention: str) -> None:
    pipe = pipeline("blocks", gen_length=13)
    pipe.model.set_attn_implementation(attention)
    plain = _run(pipe, BATCH, **how)
    for method in ("block_cache", Ssd(draft=3, cache="block_cache"), Ssd(draft=2)):
        if how.get("temperature") and method != "block_cache":
            continue
        accelerate_pipeline(pipe, method)
        found = _run(pipe, BATCH, **how)
        pipe.acceleration.remove()
        assert _tokens(found) == _tokens(plain)
        if method == "block_cache":
            assert found.report.cache_ratio > 0.3


@pytest.mark.parametrize(
    "cache", [Dkv("interval", refresh=3), Dkv("prefill"), FastDllm("prefix", None), FastDllm("dual")]
)
@pytest.mark.parametrize("family", ["gqa", "dream"])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_ssd_over_a_cache_is_that_cache_step_by_step(cache: Any, family: str, one_by_one: bool) -> None:
    how = {"gen_length": 12, "block_length": 6, "eos_early_stop": False}
    pipe = accelerate_pipeline(pipeline(family), cache)
    slow = _run(pipe, BATCH, **how)
    pipe.acceleration.remove()
    fast = _run(accelerate_pipeline(pipe, Ssd(draft=3, cache=cache, one_by_one=one_by_one)), BATCH, **how)
    assert _tokens(fast) == _tokens(slow)
    assert one_by_one or fast.report.forwards <= slow.report.forwards
    assert isinstance(cache, Dkv) or len(fast.report.accepted) < sum(fast.report.accepted)


Known = list[bool]
Reuse = Callable[[int, int, Known | None, Known, range], Known | None]
"""Rows to reuse: from the step of the block and of the run, what was known at the start of the step before and of this
one, and the block. None: compute all."""


class _Rows:
    """A model that computes some rows of one text; keys and values of all others are those of their last time."""

    def __init__(self, network: Any) -> None:
        self.network, self.stored, self.computed = network, {}, 0

    def __call__(self, x: list[int], rows: list[int]) -> dict[int, Tensor]:
        others = [p for p in range(len(x)) if p not in rows]
        cache, layers = DynamicCache(), self.network.config.num_hidden_layers
        for layer in range(layers if others else 0):
            pairs = [self.stored[layer, p] for p in others]
            cache.update(*(torch.stack([pair[i] for pair in pairs], 1)[None] for i in (0, 1)), layer)
        with torch.no_grad():
            logits = self.network(
                torch.tensor([[x[p] for p in rows]]),
                position_ids=torch.tensor([rows]),
                past_key_values=cache,
                use_cache=True,
                is_causal=False,
            ).logits[0]
        for layer in range(layers):
            for index, p in enumerate(rows, len(others)):
                held = cache.layers[layer]
                self.stored[layer, p] = (held.keys[0, :, index], held.values[0, :, index])
        self.computed += len(rows)
        return dict(zip(rows, logits, strict=True))


def _slow(network: Any, prompt: list[int], how: tuple[int, int, int], reuse: Reuse, shift: str | None) -> list[int]:
    """A text decoded with a cache: at each step the rows that are not reused, from the definitions of the papers."""
    generated, steps, block_length = how
    x, rows_of, overall = prompt + [MASK] * generated, _Rows(network), 0
    for start in range(len(prompt), len(x), block_length):
        block, before = range(start, start + block_length), None
        count = steps * block_length // generated
        for step in range(count):
            known = [token != MASK for token in x]
            if shift is None:
                share = block_length // count + (step < block_length % count)
            else:
                times = torch.linspace(1, 1e-3, count + 1)
                masked = sum(not known[p] for p in block)
                share = int(masked * (1 - times[step + 1] / times[step])) if step < count - 1 else masked
            reused = reuse(step, overall, before, known, block)
            flags = [False] * len(x) if reused is None else _flags(reused, shift, len(prompt))
            logits = rows_of(x, [p for p in range(len(x)) if not flags[p]])
            found = {}
            for p in block:
                if not known[p]:
                    row = logits[max(p - 1, 0) if shift else p].clone()
                    row[MASK] = -torch.inf
                    found[p] = row.float().softmax(-1).max(-1)
            for p in sorted(found, key=lambda p: (-float(found[p].values), p))[:share]:
                x[p] = int(found[p].indices)
            before, overall = known, overall + 1
    return x[len(prompt) :]


def _flags(known: Known, shift: str | None, prompt: int) -> Known:
    """Rows that may be reused where row p - 1 predicts position p."""
    if shift is None:
        return known
    if shift == "un":
        return [*known[1:], known[0] if any(known[prompt:]) else known[-1]]
    both = [one and other for one, other in pairwise(known)]
    return [*both, both[-1]]


def _delayed(refresh: int, second: bool) -> Reuse:
    """dKV-Cache-Decode; the released code computes the second step of a block in full, too."""
    return lambda step, _, before, known, block: None if step % refresh == 0 or (second and step == 1) else before


def _of_prompt(step: int, overall: int, before: Known | None, known: Known, block: range) -> Known | None:
    return [p < len(known) - GENERATED for p in range(len(known))] if overall else None


def _pd(refresh: int) -> Reuse:
    def reuse(step: int, overall: int, before: Known | None, known: Known, block: range) -> Known | None:
        return _of_prompt(step, overall, before, known, block) if step % refresh == 0 else before

    return reuse


def _outside(suffix: bool) -> Reuse:
    """Fast-dLLM: what lies before the block is reused within it, with `suffix` also what lies behind it."""

    def reuse(step: int, overall: int, before: Known | None, known: Known, block: range) -> Known | None:
        return [p < block.start or (suffix and p >= block.stop) for p in range(len(known))] if step else None

    return reuse


def _interval(refresh: int) -> Reuse:
    held: dict[str, Known] = {}

    def reuse(step: int, overall: int, before: Known | None, known: Known, block: range) -> Known | None:
        if step % refresh == 0:
            held["known"] = known
            return None
        return held["known"]

    return reuse


GENERATED = 12
CACHES: dict[str, tuple[Any, Reuse]] = {
    "decode": (Dkv(refresh=3, full_above=1.0), _delayed(3, True)),
    "decode, rarely": (Dkv(refresh=8, full_above=1.0), _delayed(8, True)),
    "decode, paper": (Dkv(refresh=4, form="paper", full_above=1.0), _delayed(4, False)),
    "prefill": (Dkv("prefill", full_above=1.0), _of_prompt),
    "pd": (Dkv("pd", refresh=3, full_above=1.0), _pd(3)),
    "interval": (Dkv("interval", refresh=3, full_above=1.0), _interval(3)),
    "prefix": (FastDllm("prefix", None, full_above=1.0), _outside(False)),
    "dual": (FastDllm("dual", None, full_above=1.0), _outside(True)),
}


@pytest.mark.parametrize("name", CACHES)
def test_caches_against_a_slow_decoder(name: str) -> None:
    method, reuse = CACHES[name]
    pipe, differs = pipeline("gqa", gen_length=GENERATED), 0
    for steps, block in ((12, 12), (6, 12), (12, 6)):
        how = {"num_inference_steps": steps, "block_length": block, "eos_early_stop": False}
        plain = _tokens(pipe(BATCH, **how))
        wanted = [_slow(pipe.model, prompt, (GENERATED, steps, block), reuse, None) for prompt in BATCH]
        accelerate_pipeline(pipe, method)
        assert _tokens(pipe(BATCH, **how)) == wanted
        pipe.acceleration.remove()
        differs += sum(one != other for one, other in zip(plain, wanted, strict=True))
    assert differs  # the cache is felt, so which rows are reused matters


@pytest.mark.parametrize("name", ["decode", "decode, paper", "prefill", "pd", "dual"])
@pytest.mark.parametrize("shift", ["un", "un_right"])
def test_caches_of_shifted_models_against_a_slow_decoder(name: str, shift: Any) -> None:
    method, reuse = CACHES[name]
    if isinstance(method, Dkv):
        method = Dkv(method.variant, method.refresh, form=method.form, full_above=1.0, shift=shift)
    elif shift == "un":
        pytest.skip("Fast-dLLM's caches use the shift that keeps all that is needed")
    pipe = pipeline("dream", gen_length=GENERATED)
    for steps in (12, 6):
        wanted = [_slow(pipe.model, prompt, (GENERATED, steps, GENERATED), reuse, shift) for prompt in BATCH]
        accelerate_pipeline(pipe, method)
        assert _tokens(pipe(BATCH, eos_early_stop=False, num_inference_steps=steps)) == wanted
        pipe.acceleration.remove()


@pytest.mark.parametrize(("form", "rows"), [("released", 34), ("paper", 32)])
def test_rows_and_bytes_of_a_report(form: Any, rows: int) -> None:
    # The oracle dkv_decode_refresh_3: 2 positions given, 6 to write, one a step, all rows every third step.
    pipe = accelerate_pipeline(pipeline(), "dkv", refresh=3, form=form, full_above=1.0)
    report = pipe([[3, 1]], gen_length=6).report
    assert (report.rows, report.whole, report.forwards, report.tokens) == (rows, 48, 6, 6)
    assert report.cache_ratio == pytest.approx(1 - rows / 48)
    assert sum(report.table.computed) == rows
    layers, heads, head_dim, bytes_each = 2, 4, 8, 8
    assert report.cache == 2 * layers * heads * 8 * head_dim * bytes_each
    assert pipe([[3, 1]], gen_length=6, cfg_scale=1.0).report.rows == 2 * rows


def test_a_threshold_may_need_more_forwards_than_steps_under_sparse_attention() -> None:
    pipe = accelerate_pipeline(pipeline(), "sparsed", block_size=4)
    output = pipe(BATCH, num_inference_steps=2, threshold=0.999)
    assert output.report.forwards > 2
    assert 0 < output.report.density <= 1


def test_a_report_of_drafts() -> None:
    pipe = accelerate_pipeline(pipeline(), "ssd", draft=2)
    report = pipe(BATCH).report
    assert sum(report.accepted) == 8 * len(BATCH)
    assert len(report.accepted) == len(report.drafted)
    assert all(1 <= one <= drafted <= 3 for one, drafted in zip(report.accepted, report.drafted, strict=True))
    assert "checks accepted" in str(report)


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("dkv", {"variant": "decod"}, "did you mean 'decode'"),
        ("dkv", {"refresh": 0}, "refresh must be a whole number of at least 1"),
        ("dkv", {"variant": "greedy", "window": -1}, "window must be a whole number"),
        ("dkv", {"shift": "left"}, "shift must be one of"),
        ("dkv", {"form": "draft"}, "unknown form"),
        ("dkv", {"full_above": 0.0}, "full_above is a share"),
        ("fast_dllm", {"cache": "suffix"}, "cache must be one of prefix, dual"),
        ("fast_dllm", {"cache": None, "threshold": None}, "accelerates nothing"),
        ("fast_dllm", {"threshold": 0.9, "factor": 1.0}, "not both"),
        ("fast_dllm", {"threshold": 1.5}, "threshold must be in 0..1"),
        ("sparsed", {"rho": 0.0}, "rho is the share"),
        ("sparsed", {"rho": float("nan")}, "rho is the share"),
        ("sparsed", {"skip": 1.5}, "skip is the share"),
        ("sparsed", {"block_size": 0}, "block_size must be a whole number"),
        ("sparsed", {"form": "new"}, "form must be one of"),
        ("sparsed", {"backend": "xformers"}, "backend must be one of auto, gather, sdpa, flex"),
        ("ssd", {"draft": 0}, "draft must be a whole number of at least 1"),
        ("ssd", {"cache": "pd"}, "cache must be one of"),
        ("ssd", {"cache": Ssd()}, "cache must be one of"),
        ("ssd", {"cache": SparseD()}, "cache must be one of"),
        ("ssd", {"cache": Dkv("decode")}, "no draft could be longer than one"),
        ("ssd", {"cache": Dkv("pd")}, "no draft could be longer than one"),
    ],
    ids=str,
)
def test_options_that_are_refused(method: str, options: dict[str, Any], told: str) -> None:
    pipe = pipeline()
    with pytest.raises(ValueError, match=told):
        accelerate_pipeline(pipe, method, **options)
    assert "acceleration" not in vars(pipe)


def test_drafts_are_refused_where_chance_decides() -> None:
    pipe = accelerate_pipeline(pipeline(), "ssd")
    for how in ({"temperature": 0.5}, {"remasking": "origin"}, {"remasking": "entropy", "alg_temp": 0.5}):
        with pytest.raises(ValueError, match="which chance does not allow"):
            pipe(BATCH, **how)
    assert np.isfinite(pipe(BATCH).report.margin)
