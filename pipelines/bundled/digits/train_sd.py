"""Train the bundled Stable Diffusion pipeline: ``python -m diffaccel.pipelines.bundled.digits.train_sd --output DIR``.

The VAE and the checker are those that are shipped. Two stages, each in its own folder under DIR: ``text``, which is
skipped when it is there, and ``denoiser``, which is checkpointed and continues where it stopped. Start the same command
again to resume, then ship with ``python -m diffaccel.pipelines.bundled.digits.export --pipeline sd-digits``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits import sd
from diffaccel.pipelines.bundled.digits.captions import EMPTY, scenes
from diffaccel.pipelines.bundled.digits.command import training_arguments, training_parser
from diffaccel.pipelines.bundled.digits.data import Renderer, scene_table
from diffaccel.pipelines.bundled.digits.denoiser import LatentRenderer, Recipe, Trainer
from diffaccel.pipelines.bundled.digits.objective import Epsilon, noise_schedule
from diffaccel.pipelines.bundled.digits.sampling import judge
from diffaccel.pipelines.bundled.digits.text import train_clip_tokens
from diffaccel.pipelines.bundled.digits.train_dit import load_vae
from diffaccel.pipelines.bundled.digits.unet import hidden_matrices

MINUTES = 45.0
ADAMW = 3e-3
"""Peak learning rate of AdamW, which trains the convolutions."""
GUIDANCE = 2.5
"""The guidance scale recommended to users; see the model card for the rates without it."""


def build_trainer(output: Path, text: sd.TextParts, channels: int, recipe: Recipe) -> tuple[Trainer, sd.UNetNoise]:
    """A trainer for a fresh UNet on the training captions; the empty prompt is the last row of its captions."""
    torch.manual_seed(recipe.seed)
    captions = [scene.caption for scene in scenes("train")] + [EMPTY]
    model = sd.UNetNoise(sd.build_unet(channels), text, captions)
    matrices = hidden_matrices(model.unet)
    return Trainer(model, matrices, recipe, output / "denoiser", Epsilon(noise_schedule())), model


def train(output: Path, recipe: Recipe) -> None:
    """Both stages; see the module's description."""
    if not (output / "text").is_dir():
        error = train_clip_tokens(output / "text")
        print(f"text encoder, mean squared error on held-out captions: {error:.5f}")
    text, vae, table = sd.TextParts.load(output / "text"), load_vae(), scene_table(scenes("train"))
    with torch.no_grad():
        latents = LatentRenderer(vae, Renderer("train", seed=None))
    trainer, model = build_trainer(output, text, vae.config.latent_channels, recipe)
    if trainer.resume():
        print(f"resumed at iteration {trainer.iteration}, {trainer.seconds / 60:.1f} minutes")
    pipeline, checker = sd.assemble(model.unet, text, vae), bundled.checker()
    trainer.fit(
        lambda size: latents.batch(table, size),
        len(table),
        lambda: judge(pipeline, checker, sd.call_defaults, GUIDANCE),
    )


def main() -> None:
    """The command line."""
    arguments = training_arguments(training_parser(__doc__, "folder for both stages", MINUTES))
    train(arguments.output, Recipe(minutes=arguments.minutes, adamw=ADAMW))


if __name__ == "__main__":
    main()
