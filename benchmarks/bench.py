"""The bundled pipeline on a bench: fidelity and time of any case, with the same prompts and noise for all."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import Case, full
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from diffaccel.metrics.parity import psnr, relative_l2
from diffaccel.metrics.speed import alternate
from diffaccel.pipelines import bundled

PROMPTS = 96  # so many of the held-out prompts hold one and two digits in equal parts; they are repeated


class Bench:
    """The bundled pipeline with its documented call, its prompts and its noise, on one thread.

    Args:
        pictures: number of pictures; prompts are repeated, each time with other noise.
        seed: of the noise.
        batch: pictures a call where fidelity is measured.
    """

    def __init__(self, pictures: int, seed: int, batch: int) -> None:
        torch.set_num_threads(1)
        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()
        self.pipe: Any = bundled.load()
        self.pipe.set_progress_bar_config(disable=True)
        self.checker = bundled.checker()
        self.arguments = bundled.call_defaults()
        self.negative = self.arguments.pop("negative_prompt")
        self.branches = 2 if self.arguments["true_cfg_scale"] > 1 else 1  # calls of the network a step
        prompts = bundled.prompts("held-out")[:PROMPTS]
        self.prompts = [prompts[i % len(prompts)] for i in range(pictures)]
        factor = 2 * self.pipe.vae_scale_factor
        tokens = (self.arguments["height"] // factor) * (self.arguments["width"] // factor)
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(pictures, tokens, self.pipe.transformer.config.in_channels, generator=generator)
        self.batch = batch
        self._full: dict[int, dict[str, Any]] = {}  # by steps

    @torch.no_grad()
    def inputs(self, rows: slice) -> dict[str, Tensor]:
        """Arguments of a call for some of the pictures: embedded prompts and noise."""
        prompts, length = self.prompts[rows], self.arguments["max_sequence_length"]
        result = {"latents": self.noise[rows]}
        for prefix, texts in (("", prompts), ("negative_", [self.negative] * len(prompts))):
            tokens, pooled, _ = self.pipe.encode_prompt(texts, None, max_sequence_length=length)
            result |= {f"{prefix}prompt_embeds": tokens, f"{prefix}pooled_prompt_embeds": pooled}
        return result

    def make(self, case: Case) -> dict[str, Any]:
        """Latents, pictures in [0, 1], the captions read in them, and the number of steps that were computed."""
        latents: list[Tensor] = []
        calls = 0

        def keep(_: Any, step: int, __: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
            if step == case.run - 1:
                latents.append(state["latents"])
            return {}

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        # Reached whenever the first block computes its attention, whatever accelerates the pipeline.
        counter = self.pipe.transformer.transformer_blocks[0].attn.to_q.register_forward_hook(count)
        arguments = self.arguments | {"num_inference_steps": case.run, "callback_on_step_end": keep}
        chunks = [slice(start, start + self.batch) for start in range(0, len(self.prompts), self.batch)]
        try:
            with case.applied(self.pipe):
                images = [self.pipe(**self.inputs(rows), **arguments, output_type="pt").images for rows in chunks]
        finally:
            counter.remove()
        pictures = torch.cat(images)
        return {
            "latents": torch.cat(latents),
            "images": pictures,
            "read": self.checker.read(pictures * 2 - 1),
            "computed": calls / (self.branches * len(chunks)),
        }

    def quality(self, case: Case) -> dict[str, Any]:
        """How the pictures of a case differ from those of the full run, picture by picture."""
        if case.steps not in self._full:
            self._full[case.steps] = self.make(full(case.steps))
        reference = self._full[case.steps]
        made = reference if case == full(case.steps) else self.make(case)
        result = {
            "computed": made["computed"],
            "exact": [read == prompt for read, prompt in zip(made["read"], self.prompts, strict=True)],
        }
        if made is reference:
            return result
        return result | {
            "psnr": psnr(made["images"], reference["images"]).tolist(),
            "relative_l2": relative_l2(made["latents"], reference["latents"]).tolist(),
            "same": [read == other for read, other in zip(made["read"], reference["read"], strict=True)],
        }

    def time(self, cases: list[Case], batch: int, rounds: int) -> list[dict[str, Any]]:
        """Seconds of denoising `batch` pictures, for each case and the full run in turn, each with its own pipeline."""
        inputs, base = self.inputs(slice(batch)), full(cases[0].steps)
        with ExitStack() as stack:
            runs: dict[str, Callable[[], object]] = {}
            for case in [base, *cases]:
                pipe = stack.enter_context(case.applied(copy.deepcopy(self.pipe)))
                arguments = self.arguments | {"num_inference_steps": case.run}
                runs[case.name] = partial(pipe, **inputs, **arguments, output_type="latent")
            timings = alternate(runs, rounds, progress=False)
        reference = timings.pop(base.name)
        return [
            {
                "ratio": timing.ratio(reference, cpu=True),
                "wall_ratio": timing.ratio(reference),
                "seconds": timing.seconds,
                "cpu_seconds": timing.cpu_seconds,
                "full_seconds": reference.seconds,
                "full_cpu_seconds": reference.cpu_seconds,
            }
            for timing in timings.values()
        ]


class Journal:
    """One JSON line per finished measurement, so that an interrupted run can go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.entries: dict[str, Any] = dict(json.loads(line) for line in lines)

    def add(self, key: str, value: Any) -> None:
        """Keep a measurement."""
        self.entries[key] = value
        with self.path.open("a") as file:
            file.write(json.dumps([key, value]) + "\n")
