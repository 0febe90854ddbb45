"""Training of a Dot: `train_dot`.

What is trained is the Dot only; the pipeline is as it was before when the training ends, however it ends. Everything
random is drawn from the seed and the number of the round, and a checkpoint holds all else, so that a training that was
killed goes on as if it had not been.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm

from diffaccel.morse.checkpoint import Checkpoint, Progress
from diffaccel.morse.clean import clean_samples
from diffaccel.morse.coordinates import FLOW, Coordinates
from diffaccel.morse.dot import MorseDot
from diffaccel.morse.pairs import Pair
from diffaccel.morse.power import Power
from diffaccel.morse.probe import only_network, probe
from diffaccel.morse.recipe import DotRecipe
from diffaccel.morse.rows import Rows, mixed_seed
from diffaccel.morse.sources import Calls, Drawn, Rolled
from diffaccel.watch import check_free

if TYPE_CHECKING:
    from diffaccel.morse.sources import Plans

_FADE = 0.98  # of the explained power in the log, a round


def train_dot(
    pipe: Any,
    dataset: Dataset[Mapping[str, Any]],
    dot: MorseDot | None = None,
    *,
    output: str | Path,
    plans: Plans = ((2, 4), (3, 6), (4, 8)),
    pairs: str = "uniform",
    guidance: tuple[float, float] | None = None,
    call: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: bool = True,
    **settings: Any,
) -> MorseDot:
    """Train a Dot for a pipeline (Algorithm 1 of the paper, or on the pipeline's own runs).

    Args:
        pipe: a diffusers pipeline with one denoiser; its scheduler is the one Dot is trained for.
        dataset: of mappings: "pixel_values", float [C, H, W] in -1..1, or "latents" as the network sees them, and what
            the pipeline is called with, such as "prompt". With `pairs="on-policy"` no pictures are needed.
        dot: what to train; by default a new one that shares Dash's weights.
        output: folder of the Dot, as `save_pretrained` writes it, with the averaged weights, and of the checkpoint.
        plans: Dash and Dot steps of the runs to come; `uniform` does not look at them.
        pairs: "uniform", any two times (the paper); "plan", times of the plans; "on-policy", the plans run.
        guidance: range of guidance scales to train for; None is the pipeline's own.
        call: further arguments of the pipeline's call, such as height and width.
        resume: go on from a checkpoint in `output`, if there is one.
        progress: show a bar.
        settings: fields of `DotRecipe`: iterations, batch, learning_rate, ema, loss_norm, mixed_precision, seed, ...

    Returns:
        The Dot with its averaged weights, attached to the pipeline's network.

    Raises:
        ValueError: settings out of range, a Dot of another network, a scheduler Morse cannot be had with, a dataset
            without what is needed, a pipeline that is accelerated, or a checkpoint of a training with other settings.
    """
    network = only_network(pipe)
    check_free(network)
    recipe = DotRecipe(plans=tuple(map(tuple, plans)), pairs=pairs, guidance=guidance, **settings)  # type: ignore[arg-type]
    dot = MorseDot.of(network) if dot is None else dot
    dot.attach(network)
    training = _Training(pipe, dataset, dot, recipe, dict(call or {}), Path(output), progress)
    with _frozen(network):
        training.run(resume)
    return dot


class _Training:
    """All that changes in the course of a training."""

    def __init__(
        self,
        pipe: Any,
        dataset: Dataset[Mapping[str, Any]],
        dot: MorseDot,
        recipe: DotRecipe,
        call: Mapping[str, Any],
        output: Path,
        progress: bool,
    ) -> None:
        self.recipe, self.output, self.dot, self.dataset = recipe, output, dot, dataset
        coordinates = Coordinates.of(pipe.scheduler, dot.config.residual_space)
        calls = Calls(pipe, call, recipe.guidance)
        if recipe.pairs == "on-policy":
            self.source: Drawn | Rolled = Rolled(calls, dot, recipe.plans)
        elif dot.config.base != "hold":
            raise ValueError(
                f"a Dot of base={dot.config.base!r} corrects estimates of several Dash steps, which only whole runs "
                'have: train it with pairs="on-policy"'
            )
        else:
            self.source = Drawn(calls, coordinates, dot.config.guided, recipe.plans if recipe.pairs == "plan" else None)
        dot.register_to_config(scheduler=type(pipe.scheduler).__name__, pair_sampling=recipe.pairs)
        AcceleratorState._reset_state()  # it keeps the precision of the first training of a process
        self.accelerator = Accelerator(mixed_precision=recipe.mixed_precision, cpu=_on_cpu(pipe))
        self.optimizer = torch.optim.AdamW(dot.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.rate = torch.optim.lr_scheduler.LambdaLR(self.optimizer, recipe.rate)
        self.model, self.optimizer, self.rate = self.accelerator.prepare(dot, self.optimizer, self.rate)
        self.ema = EMAModel(list(dot.parameters()), decay=recipe.ema)
        self.power = Power(self._span(calls, coordinates))
        self.progress = Progress()
        self.checkpoint = Checkpoint(self.accelerator, output, recipe, self.ema, self.power, self.progress)
        self.shown = progress and self.accelerator.is_main_process

    def _span(self, calls: Calls, coordinates: Coordinates) -> float:
        """All the time there is, in the network's unit; which the first row of the data shows."""
        if not len(self.dataset):  # type: ignore[arg-type]
            raise ValueError("the dataset is empty")
        first = default_collate([self.dataset[0]])
        probed = probe(calls.pipe, **calls.of(first, torch.Generator().manual_seed(0)))
        if self.recipe.pairs != "on-policy":
            clean_samples(calls.pipe, first)  # for its errors
        return probed.time_scale if coordinates.kept == FLOW else float(calls.pipe.scheduler.config.num_train_timesteps)

    def run(self, resume: bool) -> None:
        """Train to the end."""
        if resume and self.checkpoint.load():
            self._say(f"going on at iteration {self.progress.iteration}")
        self.dot.train()
        bar = tqdm(
            total=self.recipe.iterations,
            initial=self.progress.iteration,
            desc="Dot",
            disable=not self.shown,
            mininterval=1,
        )
        saved, last = self.progress.iteration, self.recipe.iterations
        batches = self._batches()
        while self.progress.iteration < last:
            for pair in self.source(next(batches), self._generator())[: last - self.progress.iteration]:
                self._step(pair)
                bar.update()
            self.progress.round += 1
            bar.set_postfix(explained=f"{self.power.explained():.3f}", refresh=False)
            self.power.fade(_FADE)
            if self.progress.iteration == last or self.progress.iteration - saved >= self.recipe.checkpoint_every:
                self._note()
                self.checkpoint.save()
                self._publish()
                saved = self.progress.iteration
        bar.close()
        self.ema.copy_to(list(self.dot.parameters()))
        self.dot.eval()

    def _step(self, pair: Pair) -> None:
        """One step of the optimizer."""
        # || z_to - z_ts - eta(x_ts, x_to, z_ts, t_s, t_o) ||^2
        with self.accelerator.autocast():
            said = self.model(pair.x, pair.t, pair.x_s, pair.k_s, pair.t_s, pair.conditioning)
        errors = (pair.k - pair.base - said).float().flatten(1).square().mean(1)
        self.power.add(pair, said.detach())
        if self.recipe.loss_norm != "none":
            errors = errors / self.power.change(pair, self.recipe.loss_norm == "per_bin").to(errors)
        loss = errors.mean()
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.rate.step()
        self.ema.step(list(self.dot.parameters()))
        self.progress.iteration += 1
        self.progress.losses.append(float(loss.detach()))

    def _batches(self) -> Iterator[Mapping[str, Any]]:
        """Batches of the dataset from the round on at which the training stands."""
        rows = Rows(len(self.dataset), self.recipe, self.progress.round, self.accelerator.process_index)  # type: ignore[arg-type]
        return iter(DataLoader(self.dataset, batch_sampler=rows))

    def _generator(self) -> torch.Generator:
        """All that is random in this round."""
        return torch.Generator().manual_seed(
            mixed_seed(self.recipe.seed, self.progress.round, self.accelerator.process_index)
        )

    def _note(self) -> None:
        """Log what was reached since the last note."""
        losses, self.progress.losses = self.progress.losses, []
        by_gap = {f"{one.gap[0]:g}-{one.gap[1]:g}": round(one.explained, 4) for one in self.power.by_gap()}
        by_time = [
            {"gap": one.gap, "time": one.time, "change": one.change, "explained": one.explained}
            for one in self.power.table()
        ]
        entry: dict[str, Any] = {"iteration": self.progress.iteration, "loss": sum(losses) / max(1, len(losses))}
        entry |= {"explained": self.power.explained(), "by_gap": by_gap}
        self.progress.history.append(entry | {"bins": by_time})
        self._say(json.dumps({name: round(v, 5) if isinstance(v, float) else v for name, v in entry.items()}))

    def _say(self, text: str) -> None:
        """One line beside the progress bar."""
        if self.shown:
            tqdm.write(text, file=sys.stderr)

    def _publish(self) -> None:
        """Write the Dot with its averaged weights, so that it can be used at any time."""
        if not self.accelerator.is_main_process:
            return
        own = list(self.dot.parameters())
        self.ema.store(own)
        self.ema.copy_to(own)
        self.dot.save_pretrained(self.output)
        self.ema.restore(own)
        (self.output / "training.json").write_text(
            json.dumps({"recipe": self.recipe.as_dict(), "history": self.progress.history}, indent=1) + "\n"
        )


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Dash learns nothing, and is left as it was found."""
    flags, training = {p: p.requires_grad for p in network.parameters()}, network.training
    network.requires_grad_(False)
    network.eval()
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        network.train(training)


def _on_cpu(pipe: Any) -> bool:
    return str(getattr(pipe, "device", "cpu")) == "cpu"
