"""Real models of transformers at toy size with random weights, a tokenizer for them, and a text pipeline of both."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from diffaccel.pipelines.text import TextDiffusionPipeline

WORDS = [f"w{number}" for number in range(28)]
VOCABULARY = 32
PAD, EOS, MASK, SPARE = 28, 29, 30, 31


def model(kind: str = "llama", attention: str = "sdpa", seed: int = 1, **options: Any) -> Any:
    """In float64, so that tokens can only differ if the computation does; weights that make positions matter."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": VOCABULARY,
    }
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": attention, **options}
    torch.manual_seed(seed)
    made: PreTrainedModel
    made = LlamaForCausalLM(LlamaConfig(**sizes)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**sizes))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3)
    return made.double().eval()


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """One token a word: w0 to w27."""
    specials = {"[PAD]": PAD, "[EOS]": EOS, "[MASK]": MASK, "[UNK]": SPARE}
    words = WordLevel({word: number for number, word in enumerate(WORDS)} | specials, unk_token="[UNK]")
    made = Tokenizer(words)
    made.pre_tokenizer = Whitespace()
    named = {"pad_token": "[PAD]", "eos_token": "[EOS]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **(named | options))


def pipeline(family: str = "llada", **options: Any) -> TextDiffusionPipeline:
    """A pipeline of a family: "llada" (Llama), "gqa" (Llama with fewer key heads), "dream" (Qwen2, shifted), "blocks"
    (block-causal Llama with blocks of 4)."""
    heads = {"num_key_value_heads": 1 if family == "gqa" else 4 if family == "llada" else 2}
    kind = "qwen2" if family == "dream" else "llama"
    facts: dict[str, Any] = {"shift": family == "dream", "block_causal": 4 if family == "blocks" else None}
    pipe = TextDiffusionPipeline(model(kind, **heads), tokenizer(), **(facts | {"gen_length": 8} | options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


FAMILIES = ("llada", "gqa", "dream", "blocks")
PROMPTS: list[list[int]] = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
