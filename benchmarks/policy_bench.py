"""A policy on a bench: success in closed loop, error of single decisions, work and time; equal starts and noise."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from policy_cells import FULL, Cell
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffaccel.metrics.policy import action_error
from diffaccel.metrics.speed import alternate
from diffaccel.pipelines.bundled.metaworld.demonstrations import record
from diffaccel.pipelines.bundled.metaworld.environment import World, rollout
from diffaccel.pipelines.bundled.metaworld.player import Player
from diffaccel.pipelines.policy import PolicyPipeline

HELD_OUT = 200_000
"""Seed of the first episode whose observations errors are measured on: no training and no evaluation begins there."""
HELD_OUT_EPISODES = 8


class Bench:
    """A trained policy with its worlds, recorded observations and noise, on one thread.

    Args:
        task: name of the task.
        policy: not accelerated, as it was trained.
        learnable: recorded observations for calibrated methods, shape (n, n_obs_steps, 39).
        observations: so many held-out decisions are compared.
        worlds: episodes that run at once.
    """

    def __init__(self, task: str, policy: PolicyPipeline, learnable: Tensor, observations: int, worlds: int) -> None:
        torch.set_num_threads(1)
        self.task, self.policy, self.learnable = task, policy, learnable
        self.worlds = worlds
        history, horizon = policy.config.n_obs_steps, policy.config.horizon
        held_out = record(task, HELD_OUT_EPISODES, history, horizon, seed=1, first=HELD_OUT)
        rows = np.linspace(0, len(held_out.observations) - 1, observations).round().astype(int)
        executed = slice(history - 1, history - 1 + policy.config.n_action_steps)
        self.observations, self.experts = held_out.observations[rows], held_out.actions[rows][:, executed]
        self._decisions: dict[str, Tensor] = {}
        self._made: dict[str, tuple[PolicyPipeline, float]] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.policy.denoiser.state_dict().items()):
            digest.update(name.encode() + weight.detach().float().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def simulations(self) -> list[World]:
        """Made once: a world begins each episode as if it were its first."""
        return [World(self.task) for _ in range(self.worlds)]

    def made(self, cell: Cell) -> tuple[PolicyPipeline, float]:
        """The policy as a cell has it, and the seconds it took to get there, calibration included; made once."""
        if cell.name not in self._made:
            begin = time.process_time()
            pipe = cell.pipeline(self.policy, self.learnable)
            self._made[cell.name] = pipe, time.process_time() - begin
        return self._made[cell.name]

    def measure(self, cell: Cell, episodes: int) -> dict[str, Any]:
        """All but time: steps each episode took to succeed, errors of decisions, and the work of one."""
        pipe, seconds = self.made(cell)
        return {
            "preparation_seconds": seconds,
            **self.errors(cell, pipe),
            **self.work(pipe),
            "took": self.episodes(pipe, range(episodes)),
        }

    def episodes(self, pipe: PolicyPipeline, seeds: Sequence[int]) -> list[int | None]:
        """Steps to success of the episodes of some seeds, which fix start and noise; None where it failed."""
        took: list[int | None] = []
        for start in range(0, len(seeds), self.worlds):
            some = seeds[start : start + self.worlds]
            player = Player(pipe, some)
            took += rollout(self.simulations[: len(some)], some, player, history=self.policy.config.n_obs_steps)
        return took

    def errors(self, cell: Cell, pipe: PolicyPipeline) -> dict[str, list[float] | None]:
        """Error of each held-out decision, in normalized units: to the full run of its sampler, and to the expert."""
        actions, reference = self.decisions(cell, pipe), cell.reference
        if reference is not None:
            full = self.decisions(reference)
        experts = self.policy.normalizer.action(self.experts)
        return {
            "error": None if reference is None else action_error(actions, full).tolist(),
            "expert_error": action_error(actions, experts).tolist(),
        }

    def decisions(self, cell: Cell, pipe: PolicyPipeline | None = None) -> Tensor:
        """What is decided on the held-out observations, in normalized units; the noise of each is its own."""
        if cell.name not in self._decisions:
            generators = [torch.Generator().manual_seed(row) for row in range(len(self.observations))]
            output = (pipe or self.made(cell)[0])(self.observations, generator=generators)
            self._decisions[cell.name] = self.policy.normalizer.action(output.actions)
        return self._decisions[cell.name]

    def work(self, pipe: PolicyPipeline) -> dict[str, Any]:
        """Operations of one decision's matrix products, two a multiplication, and updates of the blocks on average."""
        # Attention counts where it is made of matrix products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.decide(pipe)
        acceleration = vars(pipe).get("acceleration")
        rows = [] if acceleration is None else acceleration.plan.rows
        return {
            "flops": counter.get_total_flops(),
            "updates": float(np.mean([sum(row) for row in rows])) if rows else float(pipe.config.num_inference_steps),
        }

    def decide(self, pipe: PolicyPipeline, times: int = 1) -> None:
        """A decision as a robot asks for it, some times."""
        for _ in range(times):
            pipe(self.observations[:1], generator=torch.Generator().manual_seed(0))

    def times(self, cells: Sequence[Cell], rounds: int, queries: int) -> dict[str, dict[str, Any]]:
        """By name, seconds of `queries` decisions one after the other, in turn with the full run, and their ratio."""
        pipes = {cell.name: self.made(cell)[0] for cell in (FULL, *cells)}

        runs = {name: partial(self.decide, pipe, queries) for name, pipe in pipes.items()}
        timings = alternate(runs, rounds, progress=False)
        full, found = timings[FULL.name], {}
        for cell in cells:
            timing = timings[cell.name]
            found[cell.name] = {
                "ratio": timing.ratio(full, cpu=True),
                "ratios": timing.ratios(full, cpu=True),
                "cpu_seconds": [seconds / queries for seconds in timing.cpu_seconds],
                "seconds": [seconds / queries for seconds in timing.seconds],
                "full_cpu_seconds": [seconds / queries for seconds in full.cpu_seconds],
            }
        return found
