"""Ship a training's averaged weights: ``python -m diffaccel.pipelines.bundled.digits.export --output DIR``.

Writes the pipeline (float16 safetensors) to ``flux_digits`` and the checker to ``digits_checker``, beside this package
or under ``--to``. Works at any time, also while the training runs; measure the result with ``.evaluate``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from diffaccel.pipelines.bundled.digits.denoiser import Recipe
from diffaccel.pipelines.bundled.digits.flux import assemble, call_defaults
from diffaccel.pipelines.bundled.digits.train import build_trainer, load_parts

GUIDANCE = 2.5
"""The guidance scale recommended to users; see the model card for the rates without it."""


def export(output: Path, to: Path) -> None:
    """Write the averaged weights of the last checkpoint under ``output`` as a pipeline folder, and the checker.

    Raises:
        FileNotFoundError: nothing was trained there yet.
    """
    text, vae, _ = load_parts(output)
    trainer, model = build_trainer(output, text, vae.config.latent_channels, Recipe())
    if not trainer.resume():
        raise FileNotFoundError(f"no checkpoint under {output}; run the training command with --output {output} first")
    trainer.ema.copy_to(model.parameters())
    folder = to / "flux_digits"
    pipeline = assemble(model.transformer.eval(), text, vae)
    for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.half()
    pipeline.save_pretrained(folder)
    _without_derived(folder / "vae" / "config.json")
    (folder / "call_defaults.json").write_text(json.dumps(call_defaults(GUIDANCE), indent=2) + "\n")
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
    parser.add_argument("--output", type=Path, required=True, help="folder of the training command")
    parser.add_argument("--to", type=Path, default=Path(__file__).resolve().parents[1], help="where to write")
    arguments = parser.parse_args()
    export(arguments.output, arguments.to)


if __name__ == "__main__":
    main()
