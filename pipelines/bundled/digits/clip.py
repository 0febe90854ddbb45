"""Train the small CLIP from nothing: ``python -m diffaccel.pipelines.bundled.digits.clip --output DIR --minutes 25``.

A genuine ``CLIPModel`` of 0.6 M parameters on training captions and pictures of training handwriting, by the symmetric
contrastive loss of Radford et al. 2021 (arXiv 2103.00020, figure 3). Three quarters of a batch differ from another
caption of it in one attribute only, since captions drawn at random are told apart by their colours alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from diffaccel.pipelines.bundled.digits.captions import LAYOUTS, Scene, scenes
from diffaccel.pipelines.bundled.digits.checker import HEADS, held_out_renders
from diffaccel.pipelines.bundled.digits.data import SIZE, Renderer, blemish, paint, scene_table
from diffaccel.pipelines.bundled.digits.export import readable
from diffaccel.pipelines.bundled.digits.text import token_ids
from diffaccel.pipelines.bundled.digits.tokenizers import CLIP_LENGTH, clip_tokenizer

BASES, VARIANTS = 64, 3
"""Captions a batch is built on, and how many that differ from each in one attribute are added."""
MUON, ADAMW = 8e-3, 2e-3
"""Highest learning rates: of Muon for the matrices inside the layers, of AdamW for the rest."""


def build_model(width: int = 96, projection: int = 64) -> CLIPModel:
    """An untrained CLIP for pictures of 32x32, in patches of 8x8, and captions of up to 16 tokens."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": projection,
        "intermediate_size": 2 * projection,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))


def processor() -> CLIPProcessor:
    """What turns pictures and captions into the model's input: no crop, values in -1..1."""
    pictures = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return CLIPProcessor(pictures, clip_tokenizer())


def is_train(indices: Tensor) -> Tensor:
    """Which scenes [B] with these indices [B, 6] are trained on, as ``Scene.split`` says."""
    layout, digit, colour, digit_2, colour_2, background = indices.unbind(1)
    return (layout + digit + colour + 2 * background + 2 * digit_2 + 3 * colour_2) % 5 != 0


def variants(indices: Tensor) -> Tensor:
    """Scenes [B, 6] that differ from these in one attribute drawn at random, or do not where that is held out."""
    column = torch.randint(len(HEADS), (len(indices), 1))
    choices = torch.tensor(HEADS)[column]
    shift = 1 + (torch.rand(len(indices), 1) * (choices - 1)).long()
    changed = indices.scatter(1, column, (indices.gather(1, column) + shift) % choices)
    changed[:, 3:5] *= (changed[:, :1] != 0).long()  # a single item has no second
    return torch.where(is_train(changed)[:, None], changed, indices)


def batches(render: Renderer, ids: Tensor, rows: Tensor, table: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches: pictures [B, 3, 32, 32], token ids [B, 16], and the row of each caption [B].

    Args:
        render: draws the pictures.
        ids: token ids of all captions.
        rows: row of a caption by the six numbers of ``Scene.indices``.
        table: scenes to draw from.
    """
    while True:
        base = table[render.rows(table, BASES)]
        indices = torch.cat([base, variants(base.repeat(VARIANTS, 1))])
        images = blemish(paint(render.warped(indices), *render.colours(indices)))
        caption = rows[tuple(indices.unbind(1))]
        yield images, ids[caption], caption


def build_optimizers(model: CLIPModel) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    inner = {name for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    matrices = [p for name, p in model.named_parameters() if name in inner]
    others = [p for name, p in model.named_parameters() if name not in inner]
    return (
        torch.optim.Muon(matrices, lr=MUON, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=ADAMW, weight_decay=0.01, betas=(0.9, 0.98)),
    )


def contrastive_loss(logits: Tensor, caption: Tensor) -> Tensor:
    """Cross-entropy in both directions; pictures of one caption share the probability of being meant."""
    same = (caption[:, None] == caption).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip(output: Path, minutes: float, seed: int = 0, keep_every: float = 60) -> CLIPModel:
    """Train for so many minutes and save model and processor to ``output``, in float16.

    A checkpoint beside ``output`` is written every ``keep_every`` seconds; a training that finds one goes on.
    """
    torch.manual_seed(seed)
    model, every, table = build_model(), scenes("train"), scene_table(scenes("train"))
    ids = token_ids(clip_tokenizer(), [scene.caption for scene in every], CLIP_LENGTH)
    rows = torch.zeros(HEADS, dtype=torch.long)
    rows[tuple(table.unbind(1))] = torch.arange(len(table))
    optimizers = build_optimizers(model)
    checkpoint, spent = output.with_suffix(".checkpoint.pt"), 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, held in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
        spent = state["spent"]
    model.train()
    draw, start, kept = batches(Renderer("train", seed=None), ids, rows, table), time.monotonic() - spent, spent
    bar = tqdm(total=round(60 * minutes), initial=round(spent), desc="CLIP", unit="s")
    while (seconds := time.monotonic() - start) < 60 * minutes:
        progress = seconds / 60 / minutes
        for optimizer, peak in zip(optimizers, (MUON, ADAMW), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, 20 * progress + 0.02, 1.5 * (1 - progress) + 1e-3)
        images, tokens, caption = next(draw)
        loss = contrastive_loss(model(input_ids=tokens, pixel_values=images).logits_per_image, caption)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # a factor of 100, as in the paper
        bar.update(round(seconds) - bar.n)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if seconds - kept > keep_every:
            states = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"model": model.state_dict(), "optimizers": states, "spent": seconds}, checkpoint)
            kept = seconds
    bar.close()
    model.eval().half().save_pretrained(output)
    processor().save_pretrained(output)
    readable(output)
    model.float()
    return model


@torch.no_grad()
def gates(model: CLIPModel, count: int, seed: int = 1) -> dict[str, float]:
    """How well pictures of held-out handwriting find their caption; half of them show pairs.

    Returns:
        "n" pictures; "exact": share whose own caption scores highest of all captions there are; "one attribute": share
        whose own caption scores higher than every caption that differs from it in a single attribute.
    """
    images, expected = held_out_renders(count, seed)
    every = scenes()
    numbers = {scene: row for row, scene in enumerate(every)}
    ids = token_ids(clip_tokenizer(), [scene.caption for scene in every], CLIP_LENGTH)
    text = torch.cat([model.get_text_features(part).pooler_output for part in ids.split(1024)])
    seen = torch.cat([model.get_image_features(part).pooler_output for part in images.split(256)])
    scores = F.normalize(seen, dim=1) @ F.normalize(text, dim=1).T
    own = torch.tensor([numbers[scene] for scene in expected])
    near = [
        all(scores[i, own[i]] > scores[i, numbers[other]] for other in neighbours(s)) for i, s in enumerate(expected)
    ]
    return {"n": count, "exact": float((scores.argmax(1) == own).float().mean()), "one attribute": sum(near) / count}


def neighbours(scene: Scene) -> list[Scene]:
    """All scenes of the same layout, or of the other layout of pairs, that differ from this one in one attribute."""
    result = []
    for column, choices in enumerate(HEADS):
        for value in range(choices):
            indices = list(scene.indices)
            indices[column] = value
            pair = bool(scene.layout)
            if value == scene.indices[column] or (column in (3, 4) and not pair):
                continue
            if column == 0 and bool(list(LAYOUTS)[value]) != pair:
                continue
            result.append(Scene.of(*indices))
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of model and processor")
    parser.add_argument("--minutes", type=float, default=25, help="wall time of the training")
    parser.add_argument("--pictures", type=int, default=4000, help="pictures that are judged at the end")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train_clip(arguments.output, arguments.minutes)
    found = gates(CLIPModel.from_pretrained(arguments.output).float().eval(), arguments.pictures)
    (arguments.output / "gates.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
