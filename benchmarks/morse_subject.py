"""A bundled pipeline as `morse.py` sees it: equal noise for all cells of a seed, and what their pictures are worth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.utils import logging as diffusers_logging
from morse_cells import FIRST, ZERO, Cell
from torch import Tensor

from diffaccel import accelerate_pipeline
from diffaccel.evaluation.subject import latents_of
from diffaccel.methods import resolve
from diffaccel.methods.spelling import parse_method
from diffaccel.metrics import statistics
from diffaccel.metrics.extractor import as_bytes, load_extractor
from diffaccel.metrics.fid import frechet_distance
from diffaccel.metrics.parity import psnr, relative_l2
from diffaccel.metrics.speed import Timing, alternate
from diffaccel.metrics.statistics import Statistics
from diffaccel.morse.dot import MorseDot
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits import ddpm
from diffaccel.pipelines.bundled.digits.captions import Scene, mixed_scenes
from diffaccel.pipelines.bundled.digits.data import Renderer

REAL_SEED = 101
"""Of the renders that are compared with the renders, other than those of the kept statistics."""
NO_RATIO = 4.0
"""N that an acceleration is told where nothing depends on it: plans are given as numbers of steps."""


class Drawn(NamedTuple):
    """Pictures in 0..1 [n, c, h, w] as the pipeline returns them, and the latents they were made from."""

    pictures: Tensor
    latents: Tensor


class Subject:
    """A bundled pipeline with its prompts, on one thread.

    Args:
        name: of the pipeline.
        samples: pictures of a cell and seed.
        batch: pictures a call; noise belongs to the call, so this is part of what makes a picture.
        dots: folders of trained Dots by label.
    """

    def __init__(self, name: str, samples: int, batch: int, dots: Mapping[str, Path]) -> None:
        torch.set_num_threads(1)
        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()
        self.name, self.samples, self.batch = name, samples, batch
        self.pipe: Any = bundled.load(name)
        self.pipe.set_progress_bar_config(disable=True)
        self.shipped = self.pipe.scheduler
        self.arguments = bundled.call_defaults(name)
        del self.arguments["num_inference_steps"]
        self.negative = self.arguments.pop("negative_prompt", "")
        self.network = self.pipe.unet if hasattr(self.pipe, "unet") else self.pipe.transformer
        self.labels = {label: digest(folder) for label, folder in dots.items()}
        self.dots = {label: MorseDot.from_pretrained(folder) for label, folder in dots.items()}
        self.scenes = [] if name in bundled.UNCONDITIONAL else _scenes(samples)
        self.checker, self.extractor = bundled.checker(), load_extractor("fd_digits")
        self.renders = statistics.load(bundled.renders_path(name))
        statistics.check(self.renders, self.extractor.identity)

    # Running

    @contextmanager
    def applied(self, cell: Cell) -> Iterator[None]:
        """The pipeline with the solver and the acceleration of a cell, and as it was at the end."""
        self.pipe.scheduler = cell.scheduler(self.shipped)
        try:
            self._accelerate(cell)
            yield
        finally:
            if hasattr(self.pipe, "acceleration"):
                self.pipe.acceleration.remove()
            self.pipe.scheduler = self.shipped

    def _accelerate(self, cell: Cell) -> None:
        if cell.method:
            name, options = parse_method(cell.method)
            accelerate_pipeline(self.pipe, resolve(name, type(self.pipe).__name__, options))
        elif cell.dot:
            share, dot = cell.k_dot / cell.k_dash, self.dot(cell.dot)
            scale = self.arguments["guidance_scale"] if dot.config.guided else None
            accelerate_pipeline(self.pipe, "morse", dot=dot, dots_per_dash=share, ratio=NO_RATIO, guided=scale)

    def dot(self, label: str) -> MorseDot:
        """A Dot by its label; those that say nothing are made when they are asked for."""
        if label not in self.dots:
            self.dots[label] = MorseDot.of(self.network, m=1, widths=(8,), rank=1, **ZERO[label])
        return self.dots[label]

    def draw(self, cell: Cell, seed: int) -> tuple[Drawn, dict[str, Any]]:
        """All pictures of a cell and seed, and what was computed of the last call.

        Raises:
            ValueError: the cell cannot be had, or did not run as it says.
        """
        drawn: list[Drawn] = []
        with self.applied(cell):
            for number, start in enumerate(range(0, self.samples, self.batch)):
                rows = slice(start, min(start + self.batch, self.samples))
                with latents_of(self.pipe) as kept:
                    generator = torch.Generator().manual_seed(1000 * seed + number)
                    pictures = self.call(cell.steps, rows, generator, "pt").images
                drawn.append(Drawn(pictures.float(), kept[-1].float()))
            work = self.work(cell)
        made = Drawn(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))
        if not (made.pictures.isfinite().all() and made.latents.isfinite().all()):
            raise ValueError(f"{cell.name} diverges: its pictures are not finite")
        return made, work

    def call(self, steps: int, rows: slice, generator: torch.Generator, output: str) -> Any:
        """One call of the pipeline as it is."""
        given = {**self.inputs(rows), **self.arguments, "num_inference_steps": steps}
        return self.pipe(**given, generator=generator, output_type=output)

    def inputs(self, rows: slice) -> dict[str, Any]:
        """What a call for some of the pictures is given: their number, or embedded prompts."""
        if not self.scenes:
            return {"batch_size": rows.stop - rows.start}
        return {name: value[rows] for name, value in self.embedded.items()}

    @cached_property
    @torch.no_grad()
    def embedded(self) -> dict[str, Tensor]:
        """All prompts as the network is given them, so that text encoders are in no time."""
        prompts, empty = [scene.caption for scene in self.scenes], [self.negative] * len(self.scenes)
        if self.name == "sd-digits":
            own, negative = self.pipe.encode_prompt(prompts, self.pipe.device, 1, True, negative_prompt=empty)
            return {"prompt_embeds": own, "negative_prompt_embeds": negative}
        found, length = {}, self.arguments["max_sequence_length"]
        for prefix, texts in (("", prompts), ("negative_", empty)):
            tokens, pooled, _ = self.pipe.encode_prompt(texts, None, max_sequence_length=length)
            found |= {f"{prefix}prompt_embeds": tokens, f"{prefix}pooled_prompt_embeds": pooled}
        return found

    def work(self, cell: Cell) -> dict[str, Any]:
        """What the last run computed. Raises ValueError if a Dot did not run at the steps it was meant to."""
        if cell.kind == "plain":
            return {"computed": cell.steps}
        report = self.pipe.acceleration.report()
        if cell.method:
            return {"computed": report.steps / report.bound}
        branches = round(report.dash / cell.k_dash)  # calls are counted over all branches of guidance
        if (report.dash, report.dot) != (branches * cell.k_dash, branches * cell.k_dot) or report.forced:
            raise ValueError(f"{cell.name} ran {report.dash} Dash and {report.dot} Dot calls: {report}")
        return {"computed": cell.k_dash}

    # Judging

    def shown(self, pictures: Tensor) -> Tensor:
        """Pictures [n, 3, 32, 32] in 0..1 as the checker and the features see them."""
        if self.scenes:
            return pictures.clamp(0, 1)
        return (ddpm.coloured(pictures * 2 - 1) / 2 + 0.5).clamp(0, 1)

    def features(self, pictures: Tensor) -> Tensor:
        """Features of fd_digits [n, 192]."""
        return self.extractor(as_bytes(self.shown(pictures))).pooled

    def of(self, features: Tensor) -> Statistics:
        """Their statistics."""
        mean, covariance = statistics.gaussian(features)
        return Statistics(mean, covariance, len(features))

    def read(self, pictures: Tensor) -> dict[str, float]:
        """The share that is read as asked; without prompts, of pictures in which a digit is read."""
        if not self.scenes:
            rates = {f"legible {sure:g}": ddpm.legibility(self.checker, pictures * 2 - 1, sure) for sure in (0.5, 0.9)}
            evenness = rates["legible 0.5"]["evenness"]
            return {**{name: rate["legible"] for name, rate in rates.items()}, "evenness": evenness}
        read = self.checker.read(self.shown(pictures) * 2 - 1)
        right = sum(text == scene.caption for text, scene in zip(read, self.scenes, strict=True))
        return {"exact": right / len(self.scenes)}

    def distribution(self, features: Tensor, others: Statistics | None) -> dict[str, float | None]:
        """Fréchet distances of features to held-out renders, and to reference pictures of other noise."""
        own = self.of(features)

        def distance(other: Statistics) -> float:
            return frechet_distance(own.mu, own.sigma, other.mu, other.sigma)

        return {
            "fd_renders": distance(self.renders),
            "fd_reference": None if others is None else distance(others),
        }

    def quality(self, drawn: Drawn, reference: Drawn | None, others: Statistics | None) -> dict[str, Any]:
        """What pictures are worth, and how far they are from the reference of the same noise if one is given."""
        found = {**self.distribution(self.features(drawn.pictures), others), **self.read(drawn.pictures)}
        if reference is None:
            return found
        difference = 2 * (drawn.pictures - reference.pictures).double()  # pictures in -1..1
        return {
            **found,
            "rmse": float(difference.square().mean().sqrt()),
            "psnr": float(psnr(drawn.pictures, reference.pictures).clamp(max=100).mean()),
            "relative_l2": float(relative_l2(drawn.latents, reference.latents).mean()),
        }

    def real(self) -> dict[str, Any]:
        """The same of as many renders of held-out handwriting: what a perfect generator would get."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(REAL_SEED)
            render = Renderer("held-out", REAL_SEED)
            made = render.draw(self.scenes) if self.scenes else ddpm.GreyRenderer(render).batch(self.samples)[0]
        pictures = (made / 2 + 0.5).clamp(0, 1)
        return {**self.distribution(self.features(pictures), None), **self.read(pictures)}

    # Timing

    def times(self, cells: Sequence[Cell], batch: int, rounds: int) -> dict[str, Timing]:
        """Times of denoising so many pictures, in turn; neither text encoders nor VAE are part of it."""
        rows = slice(0, min(batch, self.samples))
        output = "latent" if self.scenes else "pt"

        def run(cell: Cell) -> None:
            self.call(cell.steps, rows, torch.Generator().manual_seed(0), output)

        runs = {cell.name: partial(run, cell) for cell in cells}
        during = {cell.name: partial(self.applied, cell) for cell in cells}
        return alternate(runs, rounds, progress=False, during=during)

    def ratio(self, label: str, batch: int, rounds: int) -> dict[str, float]:
        """N of a Dot at this batch."""
        from diffaccel.morse.ratio import measure_n

        rows, dot = slice(0, min(batch, self.samples)), self.dot(label)
        dot.attach(self.network)
        call = {**self.inputs(rows), **self.arguments, "num_inference_steps": 4}
        with self.applied(Cell(FIRST[self.name], 4)):
            found = measure_n(self.pipe, dot, 4 * rounds, **call)
        return {"n": found.n, "dash_seconds": found.dash_seconds, "dot_seconds": found.dot_seconds}


def digest(folder: Path) -> str:
    """Eight hexadecimal digits of a Dot's weights, whatever else a training keeps in its folder."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()[:8]


def _scenes(count: int) -> list[Scene]:
    """Held-out scenes of one and of two digits in turn: the few of one over and over, all those of two."""
    every = mixed_scenes("held-out")
    kinds = [[scene for scene in every if bool(scene.layout) == pair] for pair in (False, True)]
    return [kinds[i % 2][i // 2 % len(kinds[i % 2])] for i in range(count)]
