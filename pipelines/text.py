"""Diffusion language models behind the call of a diffusers pipeline: prompts in, texts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from diffaccel.dlm.adapters import Denoiser
from diffaccel.dlm.conventions import Conventions
from diffaccel.dlm.decode import check_whole
from diffaccel.dlm.decoding import Decoding
from diffaccel.dlm.generation import Generation, Sequences
from diffaccel.dlm.prompts import Generators, Prompt, decoded, encoded, seeds
from diffaccel.dlm.report import TextReport
from diffaccel.dlm.rule import Rule
from diffaccel.dlm.scores import Remasking, Sampler

Callback = Callable[[Any, int, int, dict[str, Any]], Any]


@dataclass
class TextDiffusionOutput(BaseOutput):
    """What was written.

    Attributes:
        texts: of each prompt, what follows it up to the end of the text; without the prompt.
        sequences: tokens (gen_length,) of each, with the ends of text.
        report: what it took.
    """

    texts: list[str]
    sequences: list[Tensor]
    report: TextReport


class TextDiffusionPipeline(DiffusionPipeline):
    """A masked diffusion language model: saved, loaded and moved like any pipeline of diffusers, and accelerated like
    one: `accelerate_pipeline(pipe, method="dkv")`.

    Args:
        model: any decoder-only model of transformers that was trained to fill in masks; it is run bidirectionally.
        tokenizer: of the model.
        mask_token_id: the tokenizer's if None.
        eos_token_id: the tokenizer's if None.
        shift: row p - 1 predicts position p (Dream and its kin).
        block_causal: length of the blocks between which attention is causal (SDAR, BD3-LM); None if all positions see
            each other.
        gen_length: default of calls.
        block_length: default of calls; None decodes in one block.

    Raises:
        TypeError: no decoder-only model of transformers.
        ValueError: a mask token that neither the tokenizer nor the argument names, or that the model does not know.
    """

    model_cpu_offload_seq = "model"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        mask_token_id: int | None = None,
        eos_token_id: int | None = None,
        shift: bool = False,
        block_causal: int | None = None,
        gen_length: int = 128,
        block_length: int | None = None,
    ) -> None:
        super().__init__()
        Denoiser(model, shift)
        mask = mask_token_id if mask_token_id is not None else getattr(tokenizer, "mask_token_id", None)
        if mask is None:
            raise ValueError("the tokenizer has no mask token: pass mask_token_id (LLaDA's is 126336, Dream's 151666)")
        known = model.get_input_embeddings().num_embeddings
        if not 0 <= int(mask) < known:
            raise ValueError(f"mask_token_id={mask}, but {type(model).__name__} knows 0 to {known - 1}: pass its own")
        end = eos_token_id if eos_token_id is not None else getattr(tokenizer, "eos_token_id", None)
        self.register_modules(model=model, tokenizer=tokenizer)
        self.register_to_config(
            mask_token_id=int(mask),
            eos_token_id=None if end is None else int(end),
            shift=shift,
            block_causal=block_causal,
            gen_length=gen_length,
            block_length=block_length,
        )

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> TextDiffusionPipeline:
        """LLaDA, Dream or a plain folder of transformers as a pipeline, without code of the checkpoint.

        Args:
            path: a folder or a hub id; see `diffaccel.dlm.checkpoints.load`.
            dtype: of the weights.
            device: where they go.
            **options: as for the class.

        Raises:
            ValueError: a model that cannot be loaded so, or one without a tokenizer.
            OSError: nothing there, or not complete.
        """
        from diffaccel.dlm.checkpoints import load

        found = load(path, dtype, device)
        if found.tokenizer is None:
            raise ValueError(f"{path} has no tokenizer: load its model with diffaccel.dlm.checkpoints.load")
        facts = {"mask_token_id": found.mask_token_id, "eos_token_id": found.eos_token_id, "shift": found.shift}
        return cls(found.model, found.tokenizer, **(facts | options))

    @property
    def conventions(self) -> Conventions:
        """What the model expects of the decoding loop."""
        own = self.config
        return Conventions(own.mask_token_id, own.eos_token_id, own.shift, own.block_causal)

    def decoding(
        self,
        gen_length: int | None = None,
        num_inference_steps: int | None = None,
        block_length: int | None = None,
        temperature: float = 0.0,
        cfg_scale: float = 0.0,
        remasking: Remasking | None = None,
        threshold: float | None = None,
        factor: float | None = None,
        entropy_bound: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        alg_temp: float = 0.0,
        eos_early_stop: bool = True,
    ) -> Decoding:
        """How a call with these arguments decodes without an acceleration; see `__call__`.

        Raises:
            ValueError: an argument that is out of range or fits no other.
        """
        generated = self.config.gen_length if gen_length is None else gen_length
        steps = generated if num_inference_steps is None else num_inference_steps
        check_whole("gen_length", generated, 1)
        check_whole("num_inference_steps", steps, 1)
        if steps > generated:
            raise ValueError(
                f"num_inference_steps={steps} for gen_length={generated}: a step decodes at least one token"
            )
        if not 0 <= cfg_scale < float("inf"):
            raise ValueError(f"cfg_scale must be 0 (no guidance) or more, got {cfg_scale}")
        sampler = Sampler(
            remasking or ("maskgit_plus" if self.config.shift else "low_confidence"),
            temperature,
            top_p,
            top_k,
            alg_temp,
        )
        counts = "dream" if sampler.of_dream else "llada"
        rule = Rule(counts, threshold, factor, entropy_bound, quota=self.config.block_causal is not None)
        block = self.config.block_length if block_length is None else block_length
        if self.config.block_causal not in (None, block) and block is not None:
            raise ValueError(
                f"block_length={block} for a model whose blocks are {self.config.block_causal} long: leave it out"
            )
        return Decoding(self.conventions, generated, steps, block, sampler, rule, cfg_scale, eos_early_stop)

    @overload
    def __call__(
        self,
        prompt: Prompt | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        generator: Generators = None,
        callback_on_step_end: Callback | None = None,
        return_dict: Literal[True] = True,
        **how: Any,
    ) -> TextDiffusionOutput: ...
    @overload
    def __call__(
        self,
        prompt: Prompt | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        generator: Generators = None,
        callback_on_step_end: Callback | None = None,
        *,
        return_dict: Literal[False],
        **how: Any,
    ) -> tuple[list[str], list[Tensor]]: ...
    def __call__(
        self,
        prompt: Prompt | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        generator: Generators = None,
        callback_on_step_end: Callback | None = None,
        return_dict: bool = True,
        **how: Any,
    ) -> TextDiffusionOutput | tuple[list[str], list[Tensor]]:
        """Write what follows the prompts.

        Args:
            prompt: a text, several, or tokens.
            messages: a conversation instead, for tokenizers with a chat template.
            generator: of what is drawn at a temperature above 0 or in random order: one, or one for each prompt.
            callback_on_step_end: called with the pipeline, the number of the forward, the tokens decoded so far, and
                {"sequences": tokens of each prompt and its answer} before each forward.
            return_dict: False returns texts and sequences.
            gen_length: tokens to write, the default is the pipeline's.
            num_inference_steps: T, of all blocks together; one a token by default.
            block_length: blocks are decoded one after the other; the default is the pipeline's.
            temperature: 0 takes the likeliest tokens.
            cfg_scale: classifier-free guidance; above 0 every forward is computed with and without the prompt.
            remasking: how positions are ranked; see `diffaccel.dlm.scores.Sampler`. By default `"low_confidence"`, or
                `"maskgit_plus"` for models that shift.
            threshold, factor, entropy_bound: decode as many positions a step as are sure; see
                `diffaccel.dlm.rule.Rule`.
            top_p, top_k, alg_temp: of Dream's rules.
            eos_early_stop: leave out the blocks after one that ends the text.

        Raises:
            TypeError: an argument that there is not, or a prompt that is neither text nor tokens.
            ValueError: an argument that is out of range or fits no other, or one that the acceleration does not allow.
        """
        generation = self._generation(prompt, messages, generator, how)
        total, before = len(generation.prompts) * generation.how.generated, 0
        # Closed in any case: a run that fails in a callback must take its hooks off the model.
        with closing(generation.run()) as rounds, self.progress_bar(total=total) as bar:
            for number, sequences in enumerate(rounds):
                done = self._decoded(sequences, generation)
                bar.update(done - before)
                before = done
                if callback_on_step_end is not None:
                    callback_on_step_end(self, number, done, {"sequences": sequences})
        output = self._output(generation)
        return output if return_dict else (output.texts, output.sequences)

    def stream(
        self,
        prompt: Prompt | None = None,
        messages: Sequence[Mapping[str, str]] | None = None,
        generator: Generators = None,
        **how: Any,
    ) -> Iterator[TextDiffusionOutput]:
        """As a call, but yields what is written so far before each forward, and at last all of it.

        Positions that are not decoded yet are shown as `diffaccel.dlm.prompts.MASKED`. Arguments and errors are those
        of a call; they are raised at once.
        """
        generation = self._generation(prompt, messages, generator, how)
        return self._streamed(generation)

    def _streamed(self, generation: Generation) -> Iterator[TextDiffusionOutput]:
        with closing(generation.run()) as rounds:
            for _ in rounds:
                yield self._output(generation)

    def _generation(
        self,
        prompt: Prompt | None,
        messages: Sequence[Mapping[str, str]] | None,
        generator: Generators,
        how: Mapping[str, Any],
    ) -> Generation:
        """A run, checked and not begun."""
        decoding = self.decoding(**how)
        if (acceleration := getattr(self, "acceleration", None)) is not None:
            decoding = acceleration.applied(decoding)
        denoiser = Denoiser(self.model, self.config.shift)
        known = self.model.get_input_embeddings().num_embeddings
        prompts = encoded(self.tokenizer, prompt, messages, known, self.config.mask_token_id)
        name = None if acceleration is None else str(acceleration.method)
        generation = Generation(denoiser, decoding, prompts, seeds(generator, len(prompts)), name)
        if decoding.conventions.block_causal is None:
            denoiser.check_bidirectional()
        return generation

    def _decoded(self, sequences: Sequences, generation: Generation) -> int:
        mask = self.config.mask_token_id
        parts = zip(sequences, generation.prompts, strict=True)
        return int(sum((one[len(prompt) :] != mask).sum() for one, prompt in parts))

    def _output(self, generation: Generation) -> TextDiffusionOutput:
        """What is written so far; the acceleration is told what it took."""
        report = generation.report()
        if (acceleration := getattr(self, "acceleration", None)) is not None:
            acceleration.last = report
        parts = zip(generation.sequences, generation.prompts, strict=True)
        answers = [one[len(prompt) :] for one, prompt in parts]
        sequences = [torch.from_numpy(answer.copy()) for answer in answers]
        end, mask = self.config.eos_token_id, self.config.mask_token_id
        texts = [decoded(self.tokenizer, answer, end, mask) for answer in answers]
        return TextDiffusionOutput(texts, sequences, report)
