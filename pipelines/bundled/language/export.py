"""Ship a training's averaged weights: ``python -m diffaccel.pipelines.bundled.language.export --checkpoint DIR``.

Writes a `TextDiffusionPipeline` (float16 safetensors), what was measured of it (``gates.json``) and a model card with
these numbers, beside this package or under ``--output``. Works at any time, also while the training runs.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from diffaccel.commands.arguments import natural
from diffaccel.pipelines.bundled import text
from diffaccel.pipelines.bundled.digits.denoiser import Recipe
from diffaccel.pipelines.bundled.digits.export import readable
from diffaccel.pipelines.bundled.language.card import card
from diffaccel.pipelines.bundled.language.evaluate import measure
from diffaccel.pipelines.bundled.language.model import build
from diffaccel.pipelines.bundled.language.problems import ANSWER
from diffaccel.pipelines.bundled.language.train import LanguageTrainer
from diffaccel.pipelines.text import TextDiffusionPipeline

PLACE = Path(__file__).resolve().parents[1] / "text_problems"
"""The folder that is shipped."""


def export(checkpoint: Path, output: Path, count: int = 1000, note: str = "") -> None:
    """Write the folder of the averaged weights of the last checkpoint.

    Args:
        checkpoint: folder of the training.
        output: folder to write.
        count: problems of each kind that are measured; 0 leaves all numbers out.
        note: what the card says of the training beside the recipe.

    Raises:
        FileNotFoundError: nothing was trained there yet.
    """
    if not (checkpoint / "state.pt").is_file():
        raise FileNotFoundError(f"no state.pt under {checkpoint}: run the training command with --output {checkpoint}")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint / "tokenizer")
    model, recipe = build(tokenizer), _recipe(checkpoint)
    trainer = LanguageTrainer(model, tokenizer.mask_token_id, recipe, checkpoint)
    trainer.resume()
    trainer.ema.copy_to(model.parameters())
    TextDiffusionPipeline(model.eval().half(), tokenizer, gen_length=ANSWER).save_pretrained(output)
    for config in [output / "model_index.json", *output.glob("*/*.json")]:
        _without_place(config)
    readable(output)
    pipe = text(folder=output)
    pipe.set_progress_bar_config(disable=True)
    rows = measure(pipe, count) if count else []
    (output / "gates.json").write_text(json.dumps(rows, indent=1) + "\n")
    history = {"iteration": trainer.iteration, "seconds": trainer.seconds, "decay": recipe.decay}
    (output / "README.md").write_text(card(pipe, history, recipe.minutes, rows, note))
    print(f"exported iteration {trainer.iteration} ({trainer.seconds / 60:.1f} minutes) to {output}")


def _recipe(checkpoint: Path) -> Recipe:
    """The recipe that the training wrote down."""
    found = json.loads((checkpoint / "history.json").read_text())["recipe"]
    return Recipe(**{field.name: found[field.name] for field in fields(Recipe)})


def _without_place(config: Path) -> None:
    """Remove where a part was loaded from."""
    entries = json.loads(config.read_text())
    if any(entries.pop(name, None) is not None for name in ("_name_or_path", "name_or_path")):
        config.write_text(json.dumps(entries, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the training command")
    parser.add_argument("--output", type=Path, default=PLACE, help="folder to write")
    parser.add_argument(
        "--problems", type=natural, default=1000, help="of each kind, to be measured; 0 measures nothing"
    )
    parser.add_argument("--note", default="", help="a sentence about the training, for the card")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    export(arguments.checkpoint, arguments.output, arguments.problems, arguments.note)


if __name__ == "__main__":
    main()
