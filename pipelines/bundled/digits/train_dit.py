"""Train the bundled DiT pipeline: ``python -m diffaccel.pipelines.bundled.digits.train_dit --output DIR``.

The VAE and the checker are those that are shipped. The training is checkpointed under DIR: start the same command again
to resume, then ship with ``python -m diffaccel.pipelines.bundled.digits.export --pipeline dit-digits``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits import dit
from diffaccel.pipelines.bundled.digits.command import training_arguments, training_parser
from diffaccel.pipelines.bundled.digits.data import Renderer, scene_table
from diffaccel.pipelines.bundled.digits.denoiser import LatentRenderer, Recipe, Trainer
from diffaccel.pipelines.bundled.digits.objective import Epsilon, noise_schedule
from diffaccel.pipelines.bundled.digits.sampling import judge

MINUTES = 20.0
GUIDANCE = 2.5
"""The guidance scale recommended to users; see the model card for the rates without it."""


def load_vae() -> AutoencoderTiny:
    """The shipped VAE in float32."""
    return AutoencoderTiny.from_pretrained(bundled.path("flux-digits") / "vae").float().eval()


def build_trainer(output: Path, channels: int, recipe: Recipe) -> tuple[Trainer, dit.DiTNoise]:
    """A trainer for a fresh transformer."""
    torch.manual_seed(recipe.seed)
    model = dit.DiTNoise(dit.build_transformer(channels))
    matrices = dit.hidden_matrices(model.transformer)
    return Trainer(model, matrices, recipe, output, Epsilon(noise_schedule())), model


def train(output: Path, recipe: Recipe) -> None:
    """Train until the recipe's minutes are over."""
    vae, table = load_vae(), scene_table(dit.classes())
    with torch.no_grad():
        latents = LatentRenderer(vae, Renderer("train", seed=None))
    trainer, model = build_trainer(output, vae.config.latent_channels, recipe)
    if trainer.resume():
        print(f"resumed at iteration {trainer.iteration}, {trainer.seconds / 60:.1f} minutes")
    pipeline, checker = dit.assemble(model.transformer, vae), bundled.checker()
    trainer.fit(
        lambda size: latents.batch(table, size),
        dit.EMPTY_CLASS,
        lambda: judge(pipeline, checker, dit.call_defaults, GUIDANCE, pairs=0),
    )


def main() -> None:
    """The command line."""
    arguments = training_arguments(training_parser(__doc__, "folder of the checkpoint", MINUTES))
    train(arguments.output, Recipe(minutes=arguments.minutes))


if __name__ == "__main__":
    main()
