"""Train the bundled unconditional pipeline: ``python -m diffaccel.pipelines.bundled.digits.train_ddpm --output DIR``.

One stage, ``denoiser``, which is checkpointed and continues where it stopped: start the same command again to resume,
then ship with ``python -m diffaccel.pipelines.bundled.digits.export --pipeline ddpm-digits``. The checker, which only
follows the training, is the one that is shipped.
"""

from __future__ import annotations

from pathlib import Path

import torch

from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits import ddpm
from diffaccel.pipelines.bundled.digits.checker import DigitsChecker
from diffaccel.pipelines.bundled.digits.command import training_arguments, training_parser
from diffaccel.pipelines.bundled.digits.data import Renderer
from diffaccel.pipelines.bundled.digits.denoiser import Recipe, Trainer
from diffaccel.pipelines.bundled.digits.objective import Epsilon, noise_schedule
from diffaccel.pipelines.bundled.digits.unet import hidden_matrices

MINUTES = 30.0
ADAMW = 3e-3
"""Peak learning rate of AdamW, which trains the convolutions."""
CONDITIONS = 10
"""Rows that pictures come with, the digits they show; the network is not told them."""


def build_trainer(output: Path, recipe: Recipe) -> tuple[Trainer, ddpm.UNetNoise]:
    """A trainer for a fresh UNet."""
    torch.manual_seed(recipe.seed)
    model = ddpm.UNetNoise(ddpm.build_unet())
    matrices = hidden_matrices(model.unet)
    return Trainer(model, matrices, recipe, output / "denoiser", Epsilon(noise_schedule())), model


def judge(model: ddpm.UNetNoise, checker: DigitsChecker, count: int = 256, steps: int = 28) -> dict[str, float]:
    """How legible some pictures are, and how evenly the digits come, for following a training."""
    pipe = ddpm.deterministic(ddpm.assemble(model.unet))
    return ddpm.legibility(checker, ddpm.draw(pipe, count, steps))


def train(output: Path, recipe: Recipe) -> None:
    """The one stage; see the module's description."""
    renderer, checker = ddpm.GreyRenderer(Renderer("train", seed=None)), bundled.checker()
    trainer, model = build_trainer(output, recipe)
    if trainer.resume():
        print(f"resumed at iteration {trainer.iteration}, {trainer.seconds / 60:.1f} minutes")
    trainer.fit(renderer.batch, CONDITIONS, lambda: judge(model, checker))


def main() -> None:
    """The command line."""
    arguments = training_arguments(training_parser(__doc__, "folder of the training", MINUTES))
    train(arguments.output, Recipe(minutes=arguments.minutes, adamw=ADAMW))


if __name__ == "__main__":
    main()
