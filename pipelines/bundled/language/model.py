"""The network: a small Llama whose positions all see each other."""

from __future__ import annotations

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LONGEST = 2048


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Four layers of width 128, with fresh weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.is_causal = False
    return LlamaForCausalLM(config)


def matrices(model: LlamaForCausalLM) -> list[nn.Parameter]:
    """The weight matrices inside the layers."""
    return [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
