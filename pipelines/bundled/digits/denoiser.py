"""The denoiser's training loop: by wall time, resumable, for any model and any objective."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffaccel.pipelines.bundled.digits.data import Renderer
from diffaccel.pipelines.bundled.digits.objective import Objective, flow_matching
from diffaccel.pipelines.bundled.digits.vae import latents_of

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noisy data, times [B] and conditions [B] to what the objective wants predicted."""


@dataclass(frozen=True)
class Recipe:
    """Settings of one training.

    Attributes:
        minutes: wall time of the whole training; the learning rate is a function of the share that has passed.
        batch: samples a step.
        muon: peak learning rate of Muon, for the matrices inside the blocks (scaled to AdamW's update size).
        adamw: peak learning rate of AdamW, for everything else.
        decay: share of the time, at the end, over which the learning rates fall linearly to zero.
        ema: decay of the exponential moving average of the weights, which is what ships.
        drop: share of the captions replaced by the empty prompt.
        sigma_mean: noise levels, as the logarithm of the noise's share over the data's, are
            ``sigma_mean + sigma_std * normal``.
        sigma_std: see ``sigma_mean``.
        seed: of initialisation, data and noise.
    """

    minutes: float = 31
    batch: int = 64
    muon: float = 8e-3
    adamw: float = 2e-3
    decay: float = 0.5
    ema: float = 0.999
    drop: float = 0.1
    sigma_mean: float = 0.7
    sigma_std: float = 1.1
    seed: int = 0

    def rate(self, progress: float) -> float:
        """Share of the peak learning rate when this share of the time has passed: short warm-up, flat, linear decay."""
        return min(1.0, 0.05 + progress * 60, max(0.0, (1 - progress) / self.decay))


class LatentRenderer:
    """Draws latents of random pictures without encoding them: the encoder is affine, so a picture's latents are its
    canvas's, once per colour channel, weighted with the colours."""

    def __init__(self, vae: AutoencoderTiny, render: Renderer) -> None:
        self.render = render
        canvases = render.canvases.flatten(0, 1)
        black = -torch.ones(1, 3, *canvases.shape[1:])
        zero = latents_of(vae, torch.zeros_like(black))
        parts = []
        for channel in range(3):
            single = torch.zeros(1, 3, 1, 1)
            single[:, channel] = 1
            chunks = canvases.split(512)
            parts.append(torch.cat([latents_of(vae, chunk[:, None] * single) - zero for chunk in chunks]))
        self.ink = torch.stack(parts, dim=1).flatten(2)
        ones = torch.eye(3)[:, :, None, None].expand(3, 3, *canvases.shape[1:])
        self.plain = (latents_of(vae, ones.contiguous()) - zero).flatten(1)
        self.offset, self.shape = zero.flatten(1), zero.shape[1:]

    def batch(self, table: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Latents [B, C, 8, 8] of random pictures of scenes drawn from a table [N, 6], and the rows drawn [B].

        Two items do not overlap, so their inks add.
        """
        rows = self.render.rows(table, size)
        indices = table[rows]
        picked, present = self.render.pick(indices), self.render.present[indices[:, 0]]
        front, back = self.render.colours(indices)
        weights = (front - back[:, None]) * present[:, :, None]
        ink = torch.einsum("bkc,bkcd->bd", weights, self.ink[picked])
        return (ink + back @ self.plain + self.offset).view(size, *self.shape), rows


class Trainer:
    """Model, optimizers, average and clock of one training; saved and resumed as a whole."""

    def __init__(
        self,
        model: nn.Module,
        matrices: list[nn.Parameter],
        recipe: Recipe,
        folder: Path,
        objective: Objective = flow_matching,
    ) -> None:
        self.model, self.recipe, self.folder, self.objective = model, recipe, folder, objective
        known = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in model.parameters() if id(parameter) not in known]
        self.muon = torch.optim.Muon(matrices, lr=recipe.muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(others, lr=recipe.adamw, betas=(0.9, 0.99), weight_decay=0.0)
        self.ema = EMAModel(model.parameters(), decay=recipe.ema)
        self.iteration, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    @property
    def checkpoint(self) -> Path:
        """Where the whole state is kept."""
        return self.folder / "state.pt"

    def save(self) -> None:
        """Write everything a resumed training needs; the last checkpoint stays until the new one is complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = ("model", "muon", "adamw", "ema")
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in names}
        state |= {"iteration": self.iteration, "seconds": self.seconds, "history": self.history}
        state |= {"random": torch.get_rng_state()}
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)
        log = {"recipe": asdict(self.recipe), "history": self.history}
        (self.folder / "history.json").write_text(json.dumps(log, indent=1))

    def resume(self) -> bool:
        """Continue from the checkpoint if there is one; says whether there was."""
        if not self.checkpoint.is_file():
            return False
        state = torch.load(self.checkpoint, weights_only=True)
        for name in ("model", "muon", "adamw", "ema"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        self.iteration, self.seconds, self.history = state["iteration"], state["seconds"], state["history"]
        return True

    def averaged(self, use: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Call ``use`` while the model holds the averaged weights."""
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        self.model.eval()
        try:
            return use()
        finally:
            self.ema.restore(self.model.parameters())
            self.model.train()

    def loss(self, denoiser: Denoiser, latents: Tensor, rows: Tensor) -> Tensor:
        """The loss of latents [B, ...] with conditions [B], rows of captions or classes, at noise levels drawn here."""
        recipe = self.recipe
        noise = torch.randn_like(latents)
        level = recipe.sigma_mean + recipe.sigma_std * torch.randn(len(latents))
        given = self.objective(latents, noise, level)
        errors = F.mse_loss(denoiser(given.noisy, given.time, rows), given.target, reduction="none")
        return (errors.flatten(1).mean(1) * given.weight).mean()

    def step(self, denoiser: Denoiser, latents: Tensor, rows: Tensor) -> float:
        """One optimisation step on a batch, as `loss` takes it; the loss."""
        recipe = self.recipe
        loss = self.loss(denoiser, latents, rows)
        rate = recipe.rate(self.seconds / (60 * recipe.minutes))
        for optimizer, peak in ((self.muon, recipe.muon), (self.adamw, recipe.adamw)):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.muon.step()
        self.adamw.step()
        self.ema.step(self.model.parameters())
        self.iteration += 1
        return loss.item()

    def fit(
        self,
        draw: Callable[[int], tuple[Tensor, Tensor]],
        empty: int,
        judge: Callable[[], dict[str, float]],
        save_every: float = 180,
        judge_every: float = 360,
    ) -> None:
        """Train until the recipe's minutes are over, counting the minutes before a resume.

        Args:
            draw: batch size to latents [B, ...] and conditions [B], rows of captions or classes.
            empty: the condition that stands for none.
            judge: measures the model; called with the averaged weights, its time is not counted.
            save_every: seconds between checkpoints.
            judge_every: seconds between measurements, which are logged.
        """
        total = 60 * self.recipe.minutes
        saved = judged = self.seconds
        bar = tqdm(desc="denoiser", unit="it", initial=self.iteration, mininterval=10)
        losses: list[float] = []
        while self.seconds < total:
            start = time.monotonic()
            latents, rows = draw(self.recipe.batch)
            rows = rows.masked_fill(torch.rand(len(rows)) < self.recipe.drop, empty)
            losses.append(self.step(self.model, latents, rows))
            self.seconds += time.monotonic() - start
            bar.update()
            if self.seconds - judged >= judge_every or self.seconds >= total:
                entry = {"seconds": self.seconds, "samples": float(self.iteration * self.recipe.batch)}
                entry |= {"loss": sum(losses) / len(losses)} | self.averaged(judge)
                self.history.append(entry)
                tqdm.write(json.dumps({key: round(value, 4) for key, value in entry.items()}))
                judged, losses = self.seconds, []
            if self.seconds - saved >= save_every or self.seconds >= total:
                self.save()
                saved = self.seconds
            recent = losses[-50:] or [0.0]
            shown = {"minutes": f"{self.seconds / 60:.1f}", "loss": f"{sum(recent) / len(recent):.4f}"}
            bar.set_postfix(shown, refresh=False)
        bar.close()
