"""Train the bundled language model: ``python -m diffaccel.pipelines.bundled.language.train --output DIR``.

Tokenizer and weights are kept under DIR; start the same command again to resume. Ship the result with
``python -m diffaccel.pipelines.bundled.language.export``.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from diffaccel.pipelines.bundled.digits.command import training_arguments, training_parser
from diffaccel.pipelines.bundled.digits.denoiser import Denoiser, Recipe, Trainer
from diffaccel.pipelines.bundled.language import tokenizer as tokenizers
from diffaccel.pipelines.bundled.language.batches import Batches
from diffaccel.pipelines.bundled.language.evaluate import answered
from diffaccel.pipelines.bundled.language.model import build, matrices
from diffaccel.pipelines.bundled.language.problems import ANSWER, KINDS, problems
from diffaccel.pipelines.text import TextDiffusionPipeline

RECIPE = Recipe(minutes=60, batch=64, muon=4e-3, adamw=2e-3, decay=0.5, drop=0.0)
JUDGED = 64


class LanguageTrainer(Trainer):
    """The loop with the loss of masked diffusion (LLaDA, arXiv:2502.09992, equation 5)."""

    def __init__(self, model: LlamaForCausalLM, mask: int, recipe: Recipe, folder: Path) -> None:
        super().__init__(model, matrices(model), recipe, folder)
        self.mask = mask

    def loss(self, denoiser: Denoiser, latents: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy of masked answer tokens over the share that is masked, of tokens [B, L] with answers from [B].

        Shares are spread evenly over the batch. A lone masked token weighs as if one of its answer's were expected.
        """
        count, length = latents.shape
        answer = torch.arange(length) >= rows[:, None]
        share = (torch.arange(count) + torch.rand(())) / count
        share = torch.maximum(share[torch.randperm(count)], 1 / answer.sum(1))
        masked = answer & (torch.rand(count, length) < share[:, None])
        masked |= answer & ~masked.any(1, keepdim=True) & (torch.arange(length) == _one_of(rows, length)[:, None])
        logits = self.model(input_ids=latents.masked_fill(masked, self.mask), use_cache=False).logits
        errors = F.cross_entropy(logits[masked], latents[masked], reduction="none")
        weights = (1 / (share * answer.sum(1)))[:, None].expand(-1, length)[masked]
        return (errors * weights).sum() / count


def _one_of(begins: Tensor, length: int) -> Tensor:
    """A random position of each answer."""
    return begins + (torch.rand(len(begins)) * (length - begins)).long()


def exact(pipe: TextDiffusionPipeline, kind: str, count: int) -> float:
    """Share of held-out problems of a kind that are answered exactly, one token a step, the most certain one first."""
    return fmean(answered(pipe, problems(kind, count)))


def train(output: Path, recipe: Recipe) -> None:
    """Build the tokenizer if it is not there, then train until the recipe's time is over."""
    torch.manual_seed(recipe.seed)
    if not (output / "tokenizer").is_dir():
        tokenizers.build().save_pretrained(output / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output / "tokenizer")
    model = build(tokenizer)
    trainer = LanguageTrainer(model, tokenizer.mask_token_id, recipe, output)
    if trainer.resume():
        print(f"resumed at iteration {trainer.iteration}, {trainer.seconds / 60:.1f} minutes")
    pipe = TextDiffusionPipeline(model, tokenizer, gen_length=ANSWER)
    pipe.set_progress_bar_config(disable=True)
    batches = Batches(tokenizer, seed=recipe.seed + trainer.iteration)

    def draw(size: int) -> tuple[Tensor, Tensor]:
        batches.progress = trainer.seconds / (60 * recipe.minutes)
        return batches.draw()

    def judge() -> dict[str, float]:
        return {kind: exact(pipe, kind, JUDGED) for kind in KINDS}

    trainer.fit(draw, 0, judge, judge_every=240)


def main() -> None:
    """The command line."""
    arguments = training_arguments(training_parser(__doc__, "folder of tokenizer and weights", RECIPE.minutes))
    train(arguments.output, Recipe(**{**vars(RECIPE), "minutes": arguments.minutes}))


if __name__ == "__main__":
    main()
