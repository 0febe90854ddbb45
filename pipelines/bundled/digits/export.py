"""Ship a training's averaged weights: ``python -m diffaccel.pipelines.bundled.digits.export --output DIR``.

Writes a pipeline (float16 safetensors), with ``flux-digits`` also the checker, beside this package or under ``--to``.
Works at any time, also while the training runs; measure the result with ``.evaluate``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from diffaccel.pipelines.bundled.digits import ddpm, dit, flux, sd, train, train_ddpm, train_dit, train_sd
from diffaccel.pipelines.bundled.digits.denoiser import Recipe, Trainer


def _flux(output: Path) -> tuple[Trainer, Any, dict[str, object]]:
    text, vae, _ = train.load_parts(output)
    trainer, model = train.build_trainer(output, text, vae.config.latent_channels, Recipe())
    return trainer, flux.assemble(model.transformer, text, vae), flux.call_defaults(train.GUIDANCE)


def _dit(output: Path) -> tuple[Trainer, Any, dict[str, object]]:
    vae = train_dit.load_vae()
    trainer, model = train_dit.build_trainer(output, vae.config.latent_channels, Recipe())
    return trainer, dit.assemble(model.transformer, vae), dit.call_defaults(train_dit.GUIDANCE)


def _sd(output: Path) -> tuple[Trainer, Any, dict[str, object]]:
    text, vae = sd.TextParts.load(output / "text"), train_dit.load_vae()
    trainer, model = train_sd.build_trainer(output, text, vae.config.latent_channels, Recipe())
    return trainer, sd.assemble(model.unet, text, vae), sd.call_defaults(train_sd.GUIDANCE)


def _ddpm(output: Path) -> tuple[Trainer, Any, dict[str, object]]:
    trainer, model = train_ddpm.build_trainer(output, Recipe())
    return trainer, ddpm.assemble(model.unet), ddpm.call_defaults()


PIPELINES = {"flux-digits": _flux, "dit-digits": _dit, "sd-digits": _sd, "ddpm-digits": _ddpm}
"""By name, what makes the trainer, a pipeline around its model, and the arguments of calls from a training's folder."""


def export(name: str, output: Path, to: Path) -> None:
    """Write the averaged weights of the last checkpoint under ``output`` as a pipeline folder.

    Args:
        name: of the pipeline.
        output: folder of its training.
        to: where its own folder goes.

    Raises:
        FileNotFoundError: nothing was trained there yet.
    """
    trainer, pipeline, defaults = PIPELINES[name](output)
    if not trainer.resume():
        raise FileNotFoundError(f"no checkpoint under {output}; run the training command with --output {output} first")
    trainer.ema.copy_to(trainer.model.parameters())
    folder = to / name.replace("-", "_")
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().half()
    pipeline.save_pretrained(folder)
    if "vae" in pipeline.components:
        _without_derived(folder / "vae" / "config.json")
    (folder / "call_defaults.json").write_text(json.dumps(defaults, indent=2) + "\n")
    if name == "flux-digits":
        shutil.copytree(output / "checker", to / "digits_checker", dirs_exist_ok=True)
    readable(to)
    samples = trainer.iteration * trainer.recipe.batch
    print(f"exported iteration {trainer.iteration} ({samples} samples, {trainer.seconds / 60:.1f} minutes) to {folder}")


def readable(folder: Path) -> None:
    """Let everybody read the weights, which safetensors writes for their owner only."""
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)


def _without_derived(config: Path) -> None:
    """Remove what AutoencoderTiny derives anew, and warns about when it finds it, and where it was trained."""
    entries = json.loads(config.read_text())
    for name in ("block_out_channels", "_name_or_path"):
        entries.pop(name, None)
    config.write_text(json.dumps(entries, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", choices=list(PIPELINES), default="flux-digits", help="which was trained")
    parser.add_argument("--output", type=Path, required=True, help="folder of the training command")
    parser.add_argument("--to", type=Path, default=Path(__file__).resolve().parents[1], help="where to write")
    arguments = parser.parse_args()
    export(arguments.pipeline, arguments.output, arguments.to)


if __name__ == "__main__":
    main()
