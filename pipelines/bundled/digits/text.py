"""Text encoders, CLIP and T5: pre-trained until their outputs carry the captions' attributes, then frozen.

Both are taught a code book of orthogonal unit vectors. A caption's code is the sum of the vectors of its background,
its slots, and each item's digit and colour (vectors that differ between the first and the second item), scaled to the
norm a layer normalisation gives. Digits and colours are then equally loud, which matters to the denoiser: left to
itself, an encoder gives them whatever strength it likes. A word that names a digit or colour adds a vector both items
share, and its slot's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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

from diffaccel.pipelines.bundled.digits.captions import (
    BACKGROUNDS,
    DIGITS,
    EMPTY,
    FOREGROUNDS,
    SLOTS,
    Scene,
    mixed_scenes,
    scenes,
)
from diffaccel.pipelines.bundled.digits.tokenizers import CLIP_LENGTH, T5_LENGTH, clip_tokenizer, t5_tokenizer

WIDTH = 64
"""Width of both encoders."""
EMPTY_ROWS = 8
"""How often the empty prompt is in a batch of the encoders' training."""


_SIZES = {
    "digit": len(DIGITS),
    "colour": len(FOREGROUNDS),
    "background": len(BACKGROUNDS),
    "slot": len(SLOTS),
    "first digit": len(DIGITS),
    "first colour": len(FOREGROUNDS),
    "second digit": len(DIGITS),
    "second colour": len(FOREGROUNDS),
    "empty": 1,
}


def code_book(seed: int = 0) -> dict[str, Tensor]:
    """Orthonormal vectors of width 64, each with mean zero, by kind: 58 in all."""
    vectors = torch.randn(WIDTH, sum(_SIZES.values()), generator=torch.Generator().manual_seed(seed))
    basis, _ = torch.linalg.qr(torch.cat([torch.ones(WIDTH, 1), vectors], dim=1))
    parts = basis[:, 1:].T.contiguous().split(list(_SIZES.values()))
    return dict(zip(_SIZES, parts, strict=True))


def _normalised(codes: Tensor) -> Tensor:
    return math.sqrt(WIDTH) * F.normalize(codes, dim=-1)


def _caption_code(caption: str, book: dict[str, Tensor]) -> Tensor:
    if caption == EMPTY:
        return book["empty"][0]
    scene = Scene.parse(caption)
    parts = [book["background"][scene.indices[5]]]
    for turn, item, slot in zip(("first", "second"), scene.items, scene.slots, strict=False):
        digit, colour = item.indices
        parts += [book[f"{turn} digit"][digit], book[f"{turn} colour"][colour], book["slot"][SLOTS.index(slot)]]
    return torch.stack(parts).sum(0)


def caption_codes(captions: list[str], book: dict[str, Tensor]) -> Tensor:
    """What CLIP's pooled output should be, [N, 64]: the caption's vectors in equal parts."""
    return _normalised(torch.stack([_caption_code(caption, book) for caption in captions]))


def token_codes(captions: list[str], book: dict[str, Tensor]) -> Tensor:
    """What T5's output should be, [N, 13, 64]: the caption's code, and twice as loud what the word itself says.

    The words of an item say a digit or colour and the slot it is in; the background's colour speaks for itself.
    """
    codes = torch.stack([_caption_code(caption, book) for caption in captions])
    codes = F.normalize(codes, dim=-1)[:, None].repeat(1, T5_LENGTH, 1)
    for row, caption in enumerate(captions):
        if caption == EMPTY:
            continue
        scene, words = Scene.parse(caption), caption.split()
        numbers = [place for place, word in enumerate(words) if word.isdigit()]
        for place, item, slot in zip(numbers, scene.items, scene.slots, strict=True):
            digit, colour = item.indices
            where = book["slot"][SLOTS.index(slot)]
            codes[row, place] += math.sqrt(2) * (book["digit"][digit] + where)
            codes[row, place - 1] += math.sqrt(2) * (book["colour"][colour] + where)
        codes[row, len(words) - 2] += 2 * book["background"][scene.indices[5]]
    return _normalised(codes)


def causal_codes(captions: list[str], book: dict[str, Tensor]) -> Tensor:
    """What CLIP's token outputs should be where they are all a denoiser sees, [N, 16, 64].

    CLIP reads from left to right, so a word's code says what was said up to it, and twice as loud what the word itself
    says; the end and the padding after it say the caption's code. The start, and the empty prompt, say "empty".
    """
    codes = book["empty"].repeat(len(captions), CLIP_LENGTH, 1)
    for row, caption in enumerate(captions):
        if caption == EMPTY:
            continue
        said, aloud = torch.zeros(2, len(caption.split()), WIDTH)
        for place, vector, own in _said(caption, book):
            said[place:] += vector
            aloud[place] += own
        spoken = said.any(1)
        codes[row, 1 : len(said) + 1][spoken] = F.normalize(said[spoken], dim=-1) + 2 * aloud[spoken]
        codes[row, len(said) + 1 :] = _caption_code(caption, book)
    return _normalised(codes)


def _said(caption: str, book: dict[str, Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The words of a caption that say something: place, what they add to the caption's code, and a vector of the word.

    The word after the first digit tells the slots of all items: a layout, or the end of a single item.
    """
    scene, words = Scene.parse(caption), caption.split()
    numbers = [place for place, word in enumerate(words) if word.isdigit()]
    for turn, place, item in zip(("first", "second"), numbers, scene.items, strict=False):
        digit, colour = item.indices
        yield place - 1, book[f"{turn} colour"][colour], book["colour"][colour]
        yield place, book[f"{turn} digit"][digit], book["digit"][digit]
    slots = torch.stack([book["slot"][SLOTS.index(slot)] for slot in scene.slots]).sum(0)
    yield numbers[0] + 1, slots, slots
    background = book["background"][scene.indices[5]]
    yield len(words) - 2, background, background


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


def clip_tokens_output(model: CLIPTextModel, ids: Tensor) -> Tensor:
    """CLIP's token outputs [N, 16, 64]; like the pipelines, without an attention mask."""
    tokens: Tensor = model(ids).last_hidden_state
    return tokens


def t5_output(model: T5EncoderModel, ids: Tensor) -> Tensor:
    """T5's token outputs [N, 13, 64]; like the pipelines, without an attention mask."""
    tokens: Tensor = model(ids)[0]
    return tokens


def _teach(
    model: nn.Module,
    output: Callable[..., Tensor],
    ids: Tensor,
    codes: Tensor,
    steps: int,
    name: str,
    batch: int = 256,
) -> None:
    """Regress the model's output on the codes; the first ``EMPTY_ROWS`` captions are in every batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    always = torch.arange(EMPTY_ROWS)
    bar = tqdm(range(steps), desc=name)
    for _ in bar:
        rows = torch.cat([always, torch.randint(EMPTY_ROWS, len(ids), (batch - EMPTY_ROWS,))])
        loss = F.mse_loss(output(model, ids[rows]), codes[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    model.eval().requires_grad_(False)


def training_captions() -> list[str]:
    """The empty prompt, ``EMPTY_ROWS`` times, and the training captions, those of one digit half as often as pairs."""
    single = [scene.caption for scene in scenes("train", 1)]
    pairs = [scene.caption for scene in scenes("train", 2)]
    return [EMPTY] * EMPTY_ROWS + single * (len(pairs) // len(single) // 2) + pairs


def train_clip_tokens(output: Path, steps: int = 2000, seed: int = 0) -> float:
    """Build CLIP's tokenizer and encoder, teach its token outputs the codes of the training captions, save both.

    Returns:
        Mean squared error on 1000 held-out captions; codes have mean square 1.
    """
    torch.manual_seed(seed)
    book, captions, tokenizer = code_book(seed), training_captions(), clip_tokenizer()
    unseen = [scene.caption for scene in mixed_scenes("held-out")[:1000]]
    model = clip_encoder(tokenizer)
    ids = token_ids(tokenizer, captions, CLIP_LENGTH)
    _teach(model, clip_tokens_output, ids, causal_codes(captions, book), steps, "CLIP")
    tokenizer.save_pretrained(output / "tokenizer")
    model.save_pretrained(output / "text_encoder")
    with torch.no_grad():
        tokens = clip_tokens_output(model, token_ids(tokenizer, unseen, CLIP_LENGTH))
    return F.mse_loss(tokens, causal_codes(unseen, book)).item()


def train_text(output: Path, steps: int = 2000, seed: int = 0) -> dict[str, float]:
    """Build both tokenizers and encoders, teach them the codes of the training captions, save all four to ``output``.

    Returns:
        Mean squared error of both encoders on 1000 held-out captions; codes have mean square 1.
    """
    torch.manual_seed(seed)
    book, captions = code_book(seed), training_captions()
    unseen = [scene.caption for scene in mixed_scenes("held-out")[:1000]]
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
