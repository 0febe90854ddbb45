from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM, Qwen2Tokenizer

from diffaccel.dlm.checkpoints import from_dream, from_llada, load
from diffaccel.dlm.layouts import llada_name
from tests.dlm.published import DREAM, LLADA, dream_logits, dream_weights, llada_logits, llada_weights, write

TOKENS = torch.randint(80, (3, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llada_gives_the_logits_of_the_published_architecture(tmp_path: Path, kv_heads: int) -> None:
    config = {**LLADA, "n_kv_heads": kv_heads}
    given = llada_weights(config)
    write(tmp_path, config, given)
    loaded = load(tmp_path)
    assert isinstance(loaded.model, LlamaForCausalLM)
    assert (loaded.mask_token_id, loaded.eos_token_id, loaded.shift, loaded.tokenizer) == (90, 81, False, None)
    _same(loaded.model(TOKENS).logits, llada_logits(config, given, TOKENS))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_dream_gives_the_logits_of_the_published_architecture(tmp_path: Path, kv_heads: int) -> None:
    config = {**DREAM, "num_key_value_heads": kv_heads}
    given = dream_weights(config)
    write(tmp_path, config, given)
    loaded = load(tmp_path)
    assert isinstance(loaded.model, Qwen2ForCausalLM)
    assert (loaded.mask_token_id, loaded.eos_token_id, loaded.shift) == (91, 82, True)
    _same(loaded.model(TOKENS).logits, dream_logits(config, given, TOKENS))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_position_sees_the_last_one_whatever_the_attention(tmp_path: Path, attention: str) -> None:
    write(tmp_path, LLADA, llada_weights(LLADA))
    model = load(tmp_path).model
    model.set_attn_implementation(attention)
    changed = TOKENS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 80
    moved = (model(TOKENS).logits - model(changed).logits).abs().amax(-1)
    assert moved.min() > 1e-4


@pytest.mark.parametrize(("kind", "parts"), [("safetensors", 3), ("bin", 1), ("bin", 2)])
def test_shards_and_bin_files_give_the_same_model(tmp_path: Path, kind: str, parts: int) -> None:
    given = llada_weights(LLADA)
    write(tmp_path, LLADA, given, kind, parts)
    _same(from_llada(tmp_path).model(TOKENS).logits, llada_logits(LLADA, given, TOKENS))


def test_dtype_is_that_of_the_file_unless_given(tmp_path: Path) -> None:
    write(tmp_path, DREAM, {name: value.bfloat16() for name, value in dream_weights(DREAM).items()})
    assert from_dream(tmp_path).model.dtype == torch.bfloat16
    assert from_dream(tmp_path, dtype=torch.float32).model.dtype == torch.float32


def test_a_loaded_dream_saved_and_loaded_again_is_the_same(tmp_path: Path) -> None:
    write(tmp_path / "dream", DREAM, dream_weights(DREAM))
    first = load(tmp_path / "dream")
    first.model.save_pretrained(tmp_path / "native")
    again = load(tmp_path / "native")
    assert (again.mask_token_id, again.eos_token_id, again.shift) == (91, 82, True)
    assert torch.equal(first.model(TOKENS).logits, again.model(TOKENS).logits)


def test_published_defaults_count_where_a_field_is_missing(tmp_path: Path) -> None:
    config = {name: value for name, value in LLADA.items() if name not in ("n_kv_heads", "include_bias", "alibi")}
    given = llada_weights(LLADA)
    write(tmp_path, config, given)
    _same(load(tmp_path).model(TOKENS).logits, llada_logits(LLADA, given, TOKENS))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alibi", True),
        ("rope", False),
        ("attention_layer_norm", True),
        ("input_emb_norm", True),
        ("weight_tying", True),
        ("scale_logits", True),
        ("activation_type", "gelu"),
        ("block_type", "sequential"),
        ("layer_norm_type", "gemma_rms"),
        ("layer_norm_with_affine", False),
        ("block_group_size", 2),
        ("include_bias", True),
        ("include_qkv_bias", True),
    ],
)
def test_what_a_llama_cannot_stand_for_is_refused_by_name(tmp_path: Path, field: str, value: Any) -> None:
    write(tmp_path, {**LLADA, field: value}, llada_weights(LLADA))
    with pytest.raises(ValueError, match=f"{field} is {value!r}, but a Llama"):
        load(tmp_path)


@pytest.mark.parametrize("field", ["activation_type", "block_type", "layer_norm_type", "rope", "weight_tying"])
def test_a_missing_field_whose_default_is_something_else_is_refused(tmp_path: Path, field: str) -> None:
    write(tmp_path, {name: value for name, value in LLADA.items() if name != field}, llada_weights(LLADA))
    with pytest.raises(ValueError, match=f"{field} is .* published code's default"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("use_mrope", True, "use_mrope is True"),
        ("use_sliding_window", True, "use_sliding_window is True"),
        ("rope_scaling", {"type": "yarn"}, "rope_scaling is"),
        ("tie_word_embeddings", True, "tie_word_embeddings is True"),
        ("architectures", ["DreamForCausalLM"], "not .'DreamModel'."),
        ("hidden_size", None, "no hidden_size"),
    ],
)
def test_what_a_qwen2_cannot_stand_for_is_refused_by_name(tmp_path: Path, field: str, value: Any, words: str) -> None:
    write(tmp_path, {**DREAM, field: value}, dream_weights(DREAM))
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


def test_weights_that_do_not_fit_are_refused_before_any_is_read(tmp_path: Path) -> None:
    given = llada_weights(LLADA)
    lacking = {name: value for name, value in given.items() if "blocks.1.ff_out" not in name}
    write(tmp_path / "lacking", LLADA, lacking)
    with pytest.raises(ValueError, match=r"has no model\.layers\.1\.mlp\.down_proj\.weight"):
        load(tmp_path / "lacking")
    write(tmp_path / "more", LLADA, {**given, "model.transformer.wpe.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"has unknown model\.transformer\.wpe\.weight"):
        load(tmp_path / "more")
    write(tmp_path / "wide", {**LLADA, "mlp_hidden_size": 64}, given)
    with pytest.raises(ValueError, match=r"another shape of .*gate_proj.* and 3 more"):
        load(tmp_path / "wide")


def test_the_two_ff_out_are_not_mixed_up() -> None:
    assert llada_name("model.transformer.ff_out.weight") == "lm_head.weight"
    assert llada_name("model.transformer.blocks.11.ff_out.weight") == "model.layers.11.mlp.down_proj.weight"


def test_an_incomplete_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="neither a folder nor a hub id"):
        load(tmp_path / "nothing")
    write(tmp_path, LLADA, llada_weights(LLADA), parts=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(OSError, match=r"not its files \['model-00002-of-00002"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(OSError, match="neither of model"):
        load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match="has no config"):
        load(tmp_path)


def test_a_hub_id_that_was_never_downloaded_is_named_without_asking_the_hub() -> None:
    with pytest.raises(OSError, match="cannot load no-such-owner/no-such-model: it is no folder, and the hub"):
        load("no-such-owner/no-such-model", local_files_only=True)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llada2_moe", "auto_map": {}}, "LLaDA2Pipeline"),
        ({"model_type": "llada_moe", "auto_map": {}}, "code of its own that is never run"),
        ({"model_type": "sdar"}, "code of its own that is never run"),
        ({"model_type": "llama"}, "causal llama model"),
    ],
)
def test_other_models_are_refused_with_what_to_do(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        load(tmp_path)


def test_the_wrong_loader_says_so(tmp_path: Path) -> None:
    write(tmp_path, DREAM, dream_weights(DREAM))
    with pytest.raises(ValueError, match=r"'Dream', not 'llada': use load"):
        from_llada(tmp_path)


def test_a_native_folder_needs_is_causal_false_and_a_mask_token(tmp_path: Path) -> None:
    native = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    native.is_causal = False
    model = LlamaForCausalLM(native).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names no mask token"):
        load(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[MASK]": 2, "[END]": 3}, unk_token="a"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", eos_token="[END]")
    fast.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.mask_token_id == 2
    assert loaded.tokenizer.convert_tokens_to_ids("b") == 1
    assert torch.equal(loaded.model(TOKENS % 32).logits, model(TOKENS % 32).logits)
    config = {**json.loads((tmp_path / "config.json").read_text()), "mask_token_id": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="outside the vocabulary of 32"):
        load(tmp_path)


def test_tokenizers_are_found_without_code_of_the_checkpoint(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    write(tmp_path / "llada", LLADA, llada_weights(LLADA))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b").save_pretrained(tmp_path / "llada")
    assert load(tmp_path / "llada").tokenizer.encode("b") == [1]
    write(tmp_path / "dream", DREAM, dream_weights(DREAM))
    _dream_tokenizer(tmp_path / "dream")
    tokenizer = load(tmp_path / "dream").tokenizer
    assert isinstance(tokenizer, Qwen2Tokenizer)
    assert tokenizer.encode("ab<|mask|>b") == [2, 3, 1]
    assert tokenizer.mask_token_id == 3


def _dream_tokenizer(folder: Path) -> None:
    """vocab.json, merges.txt and tokenizer_config.json as Dream publishes them: a class of its own, and code."""
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    mask = {"content": "<|mask|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings = {
        "added_tokens_decoder": {"3": {**mask, "special": True}},
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "mask_token": "<|mask|>",
        "tokenizer_class": "DreamTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _same(got: Tensor, wanted: Tensor) -> None:
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
