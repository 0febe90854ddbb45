"""Does a model attend to what its pattern keeps, to nothing else, and only for as long as it is told to?"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from diffaccel.dlm import flex
from diffaccel.dlm.block_attention import gathered_attention, token_attention
from diffaccel.dlm.patterns import FORMS, build_pattern, token_mask
from diffaccel.dlm.sparse_attention import SparseRun, sparse

WORDS = 50
FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}


def make(family: str = "llama", attention: str = "sdpa", layers: int = 2, causal: bool = False, **more: Any) -> Any:
    """A decoder with grouped queries whose heads look at different places: its queries and keys are large."""
    config, network = FAMILIES[family]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made = config(vocab_size=WORDS, **sizes, **heads, **more)
    made.is_causal = causal
    model = network._from_config(made, attn_implementation=attention).eval()
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            torch.nn.init.normal_(projection.weight, std=0.6)
    return model


def forward(model: Any, tokens: Tensor, lengths: Sequence[int] | None = None, **more: Any) -> Tensor:
    """Logits of tokens (batch, length), the sequences of so many positions on the left."""
    mask = None if lengths is None else (torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        logits: Tensor = model(tokens, attention_mask=mask, use_cache=False, **more).logits
    return logits


def words(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, WORDS, shape, generator=torch.Generator().manual_seed(seed))


def generate(model: Any, run: SparseRun, seen: Sequence[Tensor], lengths: Sequence[int] | None = None) -> list[Tensor]:
    """The logits of every step, with seen[step] as its tokens."""
    found = []
    with sparse(model, run):
        for step, tokens in enumerate(seen):
            run.begin(step)
            found.append(forward(model, tokens, lengths))
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_with_every_block_kept_the_model_is_itself(family: str, attention: str) -> None:
    model, lengths = make(family, attention), [43, 30]
    seen = [words(2, 43, seed=step) for step in range(5)]
    dense = [forward(model, tokens, lengths) for tokens in seen]
    run = SparseRun(steps=5, prompt=[23, 9], generated=[20, 21], block_size=4, rho=1, skip=0.4)
    found = generate(model, run, seen, lengths)
    assert run.density == 1
    for step in range(2):  # dense, and the one that builds
        assert torch.equal(found[step], dense[step])
    for step in range(2, 5):
        for row, length in enumerate(lengths):
            torch.testing.assert_close(found[step][row, :length], dense[step][row, :length], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["auto", "gather", "sdpa"])
@pytest.mark.parametrize("form", FORMS)
def test_sparse_steps_see_the_blocks_kept_at_the_pattern_step_and_no_others(form: str, backend: str) -> None:
    model = make(attention="eager", layers=1)
    first, later = words(1, 43, seed=1), words(1, 43, seed=2)
    run = SparseRun(steps=4, prompt=[23], generated=[20], block_size=4, rho=0.3, skip=0.25, form=form, backend=backend)
    *full, sparse_logits = generate(model, run, [first] * run.schedule.full_steps + [later])

    # The pattern from the layer's own queries and keys of `first`, then dense attention under that mask.
    layer, hidden = model.model.layers[0], model.model.embed_tokens(first)
    normed, positions = layer.input_layernorm(hidden), torch.arange(43)[None]
    query = layer.self_attn.q_proj(normed).view(1, 43, 4, 8).transpose(1, 2)
    key = layer.self_attn.k_proj(normed).view(1, 43, 2, 8).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *model.model.rotary_emb(hidden, position_ids=positions))
    mask = token_mask(build_pattern(query, key, 8**-0.5, [23], [20], 4, 0.3, form), 4, 43)
    with torch.no_grad():
        masked = model(later, attention_mask=mask.logical_not() * -1e30, use_cache=False).logits
    torch.testing.assert_close(sparse_logits, masked, rtol=0, atol=1e-6)
    assert (sparse_logits - forward(model, later)).abs().max() > 1e-2  # and that mask matters
    assert torch.equal(full[-1], forward(model, first))


@pytest.mark.parametrize("form", FORMS)
def test_sequences_of_a_batch_are_what_each_is_alone(form: str) -> None:
    model, prompt, generated = make(), [23, 9, 30], [20, 21, 13]
    lengths = [p + g for p, g in zip(prompt, generated, strict=True)]
    seen = [words(3, 47, seed=step) for step in range(6)]
    options: dict[str, Any] = {"steps": 6, "block_size": 4, "rho": 0.3, "skip": 0.2, "form": form}
    together = generate(model, SparseRun(prompt=prompt, generated=generated, **options), seen, lengths)
    for row, length in enumerate(lengths):
        run = SparseRun(prompt=[prompt[row]], generated=[generated[row]], **options)
        alone = generate(model, run, [tokens[row : row + 1, :length] for tokens in seen])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[row, :length], b[0], rtol=0, atol=1e-5)


def test_sequences_may_leave_come_twice_and_change_places() -> None:
    model, lengths, tokens = make(), [43, 30, 38], words(3, 43)
    run = SparseRun(steps=9, prompt=[23, 9, 18], generated=[20, 21, 20], block_size=4, rho=0.3, skip=0)
    with sparse(model, run):
        run.begin(0)
        forward(model, tokens, lengths)
        run.begin(1)
        everyone = forward(model, tokens, lengths)
        for step, lanes in enumerate([[2, 1], [1, 1, 2], [1], [0, 2], [2, 1, 0]], start=2):
            longest = max(lengths[lane] for lane in lanes)  # and padding leaves with the longest
            run.begin(step, torch.tensor(lanes))
            some = forward(model, tokens[lanes, :longest], [lengths[lane] for lane in lanes])
            for row, lane in enumerate(lanes):
                here = slice(0, lengths[lane])
                torch.testing.assert_close(some[row, here], everyone[lane, here], rtol=0, atol=1e-5)
        run.begin(7)
        wider = forward(model, torch.nn.functional.pad(tokens, (0, 9)), lengths)
        torch.testing.assert_close(wider[0, :43], everyone[0], rtol=0, atol=1e-5)


def test_patterns_can_be_built_anew() -> None:
    model, tokens = make(), [words(1, 40, seed=seed) for seed in (0, 0, 1)]
    old, new = (SparseRun(steps=4, prompt=[20], generated=[20], block_size=4, rho=0.3, skip=0) for _ in range(2))
    kept = generate(model, old, [*tokens, tokens[2]])[-1]
    with sparse(model, new):
        for step, rebuild in enumerate((False, False, True, False)):
            new.begin(step, rebuild=rebuild)
            found = forward(model, tokens[min(step, 2)])
            if rebuild:
                again = SparseRun(steps=2, prompt=[20], generated=[20], block_size=4, rho=0.3, skip=0)
                rebuilt = found
    assert torch.equal(rebuilt, forward(model, tokens[2]))
    assert torch.equal(found, generate(model, again, [tokens[2]] * 2)[1])
    assert (found - kept).abs().max() > 1e-3


def test_what_the_report_needs() -> None:
    model, run = make(), SparseRun(steps=5, prompt=[24, 9], generated=[16, 11], block_size=4, rho=0.5, skip=0)
    assert (run.density, run.nbytes, run.seconds) == (None, 0, 0)
    generate(model, run, [words(2, 40)] * 2, [40, 20])
    # 6 prompt and 4 generation blocks, half of each; then 3 and 2: 2 and 1
    assert run.density == pytest.approx((5 * 10 + 3 * 5) / (10 * 10 + 5 * 5))
    assert run.nbytes == 2 * 2 * 4 * 10 * 10  # layers, sequences, heads, blocks
    assert run.seconds > 0


def test_pieces_are_the_whole_and_gathered_blocks_are_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    for lengths, form in (((30, 17), "paper"), ((28, 28), "paper"), ((28, 28), "released")):
        prompt, longest = [10, 8], max(lengths)
        query, key, value = (torch.randn(2, heads, longest, 8) for heads in (4, 2, 2))
        generated = [total - p for total, p in zip(lengths, prompt, strict=True)]
        pattern = build_pattern(query, key, 1.0, prompt, generated, 4, 0.4, form)
        arguments = (query, key, value, pattern, torch.tensor(lengths), 4, 0.5)
        wanted = token_attention(*arguments)
        torch.testing.assert_close(gathered_attention(*arguments), wanted, rtol=0, atol=1e-6)
        with monkeypatch.context() as pieces:
            pieces.setattr("diffaccel.dlm.block_attention._MASKED", 1)
            pieces.setattr("diffaccel.dlm.block_attention._GATHERED", 1)
            for attention in (token_attention, gathered_attention):
                torch.testing.assert_close(attention(*arguments), wanted, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(flex.missing(torch.device("cpu")) is not None, reason="no C++ compiler")
def test_compiled_blocks_are_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped queries, padding, a length that no block divides, and tiles of two blocks (CUDA's are of several)."""
    monkeypatch.setattr(flex, "tiles", functools.partial(flex.tiles, size=16))
    model, lengths, tokens = make(), [75, 42], words(2, 75)
    runs = [
        SparseRun(steps=3, prompt=[43, 20], generated=[32, 22], block_size=8, rho=0.2, skip=0, backend=backend)
        for backend in ("sdpa", "flex")
    ]
    masked, compiled = (generate(model, run, [tokens] * 3, lengths)[-1] for run in runs)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(compiled[row, :length], masked[row, :length], rtol=0, atol=1e-5)


def test_compiled_blocks_have_no_gradients() -> None:
    query = torch.randn(1, 1, 8, 4, requires_grad=True)
    tiles = flex.tiles(torch.ones(1, 1, 2, 2, dtype=torch.bool), torch.tensor([8]), 4)
    with pytest.raises(RuntimeError, match="inference_mode"):
        flex.attend(query, query, query, tiles, 1.0)


def test_a_tile_is_skipped_only_with_all_of_its_blocks() -> None:
    pattern = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    pattern[..., :4, :2] = True  # tile (0, 0) and (1, 0) whole
    pattern[..., 0, 3] = True  # tile (0, 1) in part
    pattern[..., 4, 4] = True  # tile (2, 2): the sequence ends within
    tiles = flex.tiles(pattern, torch.tensor([9]), 2, size=4)
    assert tiles.whole[0].tolist() == [[[1, 1, 0]]]
    assert tiles.partial[0].tolist() == [[[1, 0, 1]]]
    assert tiles.whole[1][0, 0, :2, 0].tolist() == [0, 0]
    assert tiles.partial[1][0, 0, (0, 2), 0].tolist() == [1, 2]


class BrokenError(Exception):
    """What a user's callback raises."""


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    model, tokens = make(), words(1, 40)
    before, dense = dict(vars(model.config)), forward(model, tokens)
    run = SparseRun(steps=4, prompt=[20], generated=[20], block_size=4, rho=0.3, skip=0)

    def breaks() -> None:
        with sparse(model, run):
            run.begin(0)
            forward(model, tokens)
            run.begin(1)
            assert not torch.equal(forward(model, tokens), dense)
            raise BrokenError

    with pytest.raises(BrokenError):
        breaks()
    assert vars(model.config) == before
    assert torch.equal(forward(model, tokens), dense)
    generate(model, SparseRun(steps=4, prompt=[20], generated=[20]), [tokens])  # and the next one is not refused


def test_one_run_per_model_at_a_time() -> None:
    model, other, tokens = make(), make(), words(1, 40)
    run, second = (SparseRun(steps=4, prompt=[20], generated=[20]) for _ in range(2))
    with sparse(model, run):
        for used, started in ((model, second), (other, run)):
            with pytest.raises(RuntimeError, match="already"), sparse(used, started):
                pass
        run.begin(0)
        forward(model, tokens)  # the refused ones changed nothing
        with sparse(other, second):  # two models, two runs
            second.begin(0)
            assert torch.equal(forward(other, tokens), forward(model, tokens))
    assert model.config._attn_implementation == other.config._attn_implementation == "sdpa"


def test_a_model_that_shares_the_config_stays_dense() -> None:
    model, tokens = make(), words(1, 40)
    other = LlamaForCausalLM(model.config).eval()
    other.load_state_dict(model.state_dict())
    assert other.config is model.config
    dense = forward(model, tokens)
    run = SparseRun(steps=2, prompt=[20], generated=[20], block_size=4, rho=0.3, skip=0)
    with sparse(model, run):
        for step in range(2):
            run.begin(step)
            last = forward(model, tokens)
            assert torch.equal(forward(other, tokens), dense)
        assert not torch.equal(last, dense)
        with (
            pytest.raises(RuntimeError, match="shares its config"),
            sparse(other, SparseRun(steps=2, prompt=[20], generated=[20])),
        ):
            pass


def refused(model: Any, message: str, *, step: int = 0, kind: type[Exception] = ValueError, **more: Any) -> None:
    """A forward of 40 positions, in a run whose one sequence has 36."""
    run = SparseRun(steps=4, prompt=[16], generated=[20], skip=0)

    def one_step() -> None:
        with sparse(model, run):
            run.begin(step)
            forward(model, words(1, 40), **more)

    with pytest.raises(kind, match=message):
        one_step()


def test_forwards_that_are_not_those_of_the_run_are_refused() -> None:
    model = make()
    refused(model, "pass an attention_mask")
    refused(model, "pass an attention_mask", lengths=[40])  # transformers drops a mask of ones
    refused(model, "padding on the right", lengths=[35])
    refused(model, "have no pattern yet: run step 0", step=1, kind=RuntimeError, lengths=[36])
    run = SparseRun(steps=4, prompt=[16], generated=[20])
    with sparse(model, run):
        with pytest.raises(RuntimeError, match="begin"):
            forward(model, words(1, 36))
        run.begin(0)
        with pytest.raises(ValueError, match="2 rows of 36"):
            forward(model, words(2, 36))
        with pytest.raises(ValueError, match="1 rows of 30"):
            forward(model, words(1, 30))
        left = (torch.arange(40) >= 4).long()[None]
        with pytest.raises(ValueError, match="on the left"):
            model(words(1, 40), attention_mask=left, use_cache=False)
        cache = DynamicCache()
        with torch.no_grad():
            model(words(1, 36), past_key_values=cache, use_cache=True)
            with pytest.raises(ValueError, match="needs all rows"):
                model(words(1, 4), past_key_values=cache, use_cache=True)


def test_attention_that_sparsed_does_not_know_is_refused() -> None:
    refused(make(causal=True), "is_causal = False", lengths=[36])
    refused(make("mistral", sliding_window=8), "sliding_window", lengths=[36])
    refused(make(attention_dropout=0.1).train(), "eval", lengths=[36])
    refused(make(attention="flex_attention"), "attn_implementation='sdpa'")
    with (
        pytest.raises(ValueError, match="PreTrainedModel"),
        sparse(torch.nn.Linear(2, 2), SparseRun(steps=1, prompt=[1], generated=[1])),
    ):
        pass


def test_without_a_compiler_flex_is_refused_before_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = make(), SparseRun(steps=4, prompt=[20], generated=[20], backend="flex")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert shutil.which("g++") is None
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler"), sparse(model, run):
        pass
    assert model.config._attn_implementation == "sdpa"
    assert "gather" in str(flex.missing(torch.device("mps")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"skip": 2.0}, "skip"),
        ({"rho": 0.0}, "rho"),
        ({"form": "new"}, "form"),
        ({"block_size": 0}, "block_size"),
        ({"backend": "xformers"}, "choose one of auto, gather, sdpa, flex"),
        ({"prompt": []}, "per sequence"),
        ({"generated": [4]}, "per sequence"),
        ({"generated": [4, 0]}, "generated"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"steps": 4, "prompt": [4, 4], "generated": [4, 8]}
    run = SparseRun(**good)
    with pytest.raises(ValueError, match=message):
        SparseRun(**{**good, **change})
    for step, lanes in ((4, None), (-1, None), (0, [2]), (0, [-1]), (0, []), (0, [1, 1])):
        with pytest.raises(ValueError, match=r"step|lanes"):
            run.begin(step, lanes)
