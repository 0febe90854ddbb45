"""Text encoders, CLIP and T5: pre-trained until their outputs carry the captions' attributes, then frozen.

Both are taught a code book: orthogonal unit vectors, one per digit, colour and for the empty prompt. A caption's code
is the sum of its three vectors, scaled to the norm a layer normalisation gives. Digit and colours are then equally
loud, which matters to the denoiser: left to itself, an encoder gives colours and digits whatever strength it likes.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from diffaccel.pipelines.bundled.digits.captions import BACKGROUNDS, DIGITS, EMPTY, FOREGROUNDS, Scene, scenes
from diffaccel.pipelines.bundled.digits.tokenizers import CLIP_LENGTH, T5_LENGTH, clip_tokenizer, t5_tokenizer

WIDTH = 64
"""Width of both encoders."""


def code_book(seed: int = 0) -> Tensor:
    """Orthonormal vectors [21, 64], each with mean zero: 10 digits, 6 foregrounds, 4 backgrounds, the empty prompt."""
    count = len(DIGITS) + len(FOREGROUNDS) + len(BACKGROUNDS) + 1
    vectors = torch.randn(WIDTH, count, generator=torch.Generator().manual_seed(seed))
    basis, _ = torch.linalg.qr(torch.cat([torch.ones(WIDTH, 1), vectors], dim=1))
    book: Tensor = basis[:, 1:].T.contiguous()
    return book


def _rows(caption: str) -> list[int]:
    """Rows of the code book a caption speaks of."""
    if caption == EMPTY:
        return [-1]
    digit, foreground, background = Scene.parse(caption).indices
    return [digit, len(DIGITS) + foreground, len(DIGITS) + len(FOREGROUNDS) + background]


def _normalised(codes: Tensor) -> Tensor:
    return math.sqrt(WIDTH) * F.normalize(codes, dim=-1)


def caption_codes(captions: list[str], book: Tensor) -> Tensor:
    """What CLIP's pooled output should be, [N, 64]: the caption's vectors in equal parts."""
    return _normalised(torch.stack([book[_rows(caption)].sum(0) for caption in captions]))


def token_codes(captions: list[str], book: Tensor) -> Tensor:
    """What T5's output should be, [N, 8, 64]: the caption's vectors, a word's own attribute three times as strong."""
    codes = torch.stack([book[_rows(caption)].sum(0) for caption in captions])[:, None].repeat(1, T5_LENGTH, 1)
    for row, caption in enumerate(captions):
        if caption != EMPTY:
            for place, attribute in zip((2, 1, 5), _rows(caption), strict=True):
                codes[row, place] += 2 * book[attribute]
    return _normalised(codes)


def token_ids(tokenizer: CLIPTokenizer | T5Tokenizer, captions: list[str], length: int) -> Tensor:
    """Token ids [N, length] the way the pipelines make them."""
    encoded = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer CLIP text model, untrained."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A two-layer T5 encoder, untrained."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5EncoderModel(config)


def clip_output(model: CLIPTextModel, ids: Tensor) -> Tensor:
    """CLIP's pooled output [N, 64]."""
    pooled: Tensor = model(ids).pooler_output
    return pooled


def t5_output(model: T5EncoderModel, ids: Tensor) -> Tensor:
    """T5's token outputs [N, 8, 64]; like the pipelines, without an attention mask."""
    tokens: Tensor = model(ids)[0]
    return tokens


def _teach(model: nn.Module, output: object, ids: Tensor, codes: Tensor, steps: int, name: str) -> None:
    assert callable(output)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    bar = tqdm(range(steps), desc=name)
    for _ in bar:
        loss = F.mse_loss(output(model, ids), codes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    model.eval().requires_grad_(False)


def train_text(output: Path, steps: int = 400, seed: int = 0) -> dict[str, float]:
    """Build both tokenizers and encoders, teach them the codes of the training captions, save all four to ``output``.

    Returns:
        Mean squared error of both encoders on the held-out captions; codes have mean square 1.
    """
    torch.manual_seed(seed)
    book = code_book(seed)
    captions = [EMPTY] * 8 + [scene.caption for scene in scenes("train")]
    unseen = [scene.caption for scene in scenes("held-out")]
    clip_tokens, t5_tokens = clip_tokenizer(), t5_tokenizer()
    clip, t5 = clip_encoder(clip_tokens), t5_encoder(t5_tokens)
    ids, ids_2 = token_ids(clip_tokens, captions, CLIP_LENGTH), token_ids(t5_tokens, captions, T5_LENGTH)
    _teach(clip, clip_output, ids, caption_codes(captions, book), steps, "CLIP")
    _teach(t5, t5_output, ids_2, token_codes(captions, book), steps, "T5")
    for part, folder in ((clip_tokens, "tokenizer"), (t5_tokens, "tokenizer_2")):
        part.save_pretrained(output / folder)
    for encoder, folder in ((clip, "text_encoder"), (t5, "text_encoder_2")):
        encoder.save_pretrained(output / folder)
    with torch.no_grad():
        pooled = clip_output(clip, token_ids(clip_tokens, unseen, CLIP_LENGTH))
        tokens = t5_output(t5, token_ids(t5_tokens, unseen, T5_LENGTH))
    return {
        "clip": F.mse_loss(pooled, caption_codes(unseen, book)).item(),
        "t5": F.mse_loss(tokens, token_codes(unseen, book)).item(),
    }
