"""The tokenizer: byte-pair encoding of Python source, every digit a token of its own."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from diffaccel.pipelines.bundled.language import python_source

VOCABULARY = 512
MASK, END = "<|mask|>", "<|endoftext|>"


def build(limit: int = 4_000_000) -> PreTrainedTokenizerFast:
    """Trained on the first `limit` characters of the source; takes a few seconds.

    Texts are padded on the left, since answers are on the right.
    """
    tokenizer = Tokenizer(models.BPE())
    digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(python_source.text("train", limit).splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        mask_token=MASK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
