"""Genuine CLIP and T5 tokenizers whose vocabularies are built from the captions, offline."""

from __future__ import annotations

import json
import string
from collections import Counter

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from diffaccel.pipelines.bundled.digits.captions import scenes

CLIP_LENGTH = 16
"""Tokens CLIP sees: start, words, end, padding."""
T5_LENGTH = 13
"""Tokens T5 sees: twelve words and the end, which is what the longest caption takes."""

_CLIP_START, _CLIP_END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE with an end-of-word suffix, trained on all captions; every byte also exists as a whole word."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    trained.train_from_iterator([scene.caption for scene in scenes()], trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    vocabulary = {token: index for index, token in enumerate([*dict.fromkeys(tokens), _CLIP_START, _CLIP_END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """Unigram vocabulary of the captions' words, with single characters as a dear fallback for anything else."""
    words = Counter(word for scene in scenes() for word in scene.caption.split())
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    vocabulary += [("▁" + word, -2.0) for word in sorted(words)]
    vocabulary += [(letter, -10.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=T5_LENGTH)
