"""Train the bundled Flux pipeline from nothing: ``python -m diffaccel.pipelines.bundled.digits.train --output DIR``.

Four stages, each kept in its own folder under DIR and skipped when it is there: ``text``, ``vae``, ``checker`` and
``denoiser``, which is checkpointed and continues where it stopped. Start the same command again to resume, then ship
with ``python -m diffaccel.pipelines.bundled.digits.export``.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from diffaccel.pipelines.bundled.digits.captions import EMPTY, scenes
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker, train_checker
from diffaccel.pipelines.bundled.digits.command import training_arguments, training_parser
from diffaccel.pipelines.bundled.digits.data import Renderer, scene_table
from diffaccel.pipelines.bundled.digits.denoiser import LatentRenderer, Recipe, Trainer
from diffaccel.pipelines.bundled.digits.flux import (
    FluxVelocity,
    TextParts,
    assemble,
    build_transformer,
    call_defaults,
    hidden_matrices,
    pack,
)
from diffaccel.pipelines.bundled.digits.sampling import judge
from diffaccel.pipelines.bundled.digits.text import train_text
from diffaccel.pipelines.bundled.digits.vae import train_vae

GUIDANCE = 2.5
"""The guidance scale recommended to users; see the model card for the rates without it."""


def prepare(output: Path, channels: int) -> None:
    """Train the text encoders, the VAE and the checker, whichever are not in ``output`` yet (about 20 minutes)."""
    if not (output / "text").is_dir():
        print("text encoders, mean squared error on held-out captions:", json.dumps(train_text(output / "text")))
    if not (output / "vae").is_dir():
        train_vae(output / "vae", channels, seconds=540)
    if not (output / "checker").is_dir():
        train_checker(output / "checker", seconds=300)


def load_parts(output: Path) -> tuple[TextParts, AutoencoderTiny, DigitsChecker]:
    """The parts :func:`prepare` saved, in float32.

    Raises:
        FileNotFoundError: a part is missing.
    """
    for name in ("text", "vae", "checker"):
        if not (output / name).is_dir():
            raise FileNotFoundError(
                f"{output / name} is missing; run the training command with --output {output} first"
            )
    vae = AutoencoderTiny.from_pretrained(output / "vae").float().eval()
    return TextParts.load(output / "text"), vae, DigitsChecker.from_pretrained(output / "checker").float().eval()


def build_trainer(output: Path, text: TextParts, channels: int, recipe: Recipe) -> tuple[Trainer, FluxVelocity]:
    """A trainer for a fresh transformer on the training captions; the empty prompt is the last row of its captions."""
    torch.manual_seed(recipe.seed)
    captions = [scene.caption for scene in scenes("train")] + [EMPTY]
    model = FluxVelocity(build_transformer(channels), text, captions)
    return Trainer(model, hidden_matrices(model.transformer), recipe, output / "denoiser"), model


def train(output: Path, recipe: Recipe, channels: int) -> None:
    """All stages; see the module's description."""
    prepare(output, channels)
    text, vae, checker = load_parts(output)
    with torch.no_grad():
        latents = LatentRenderer(vae, Renderer("train", seed=None))
    trainer, model = build_trainer(output, text, channels, recipe)
    if trainer.resume():
        print(f"resumed at iteration {trainer.iteration}, {trainer.seconds / 60:.1f} minutes")
    pipeline, table = assemble(model.transformer, text, vae), scene_table(scenes("train"))

    def draw(size: int) -> tuple[Tensor, Tensor]:
        drawn, rows = latents.batch(table, size)
        return pack(drawn), rows

    trainer.fit(draw, len(table), lambda: judge(pipeline, checker, call_defaults, GUIDANCE))


def main() -> None:
    """The command line."""
    parser = training_parser(__doc__, "folder for all stages", Recipe.minutes)
    parser.add_argument("--channels", type=int, default=12, help="latent channels of the VAE")
    arguments = training_arguments(parser)
    train(arguments.output, Recipe(minutes=arguments.minutes), arguments.channels)


if __name__ == "__main__":
    main()
