"""Train a bundled policy: ``python -m diffaccel.pipelines.bundled.metaworld.train --task pick-place --output DIR``.

Demonstrations are recorded first, in about half a minute. The training is checkpointed under DIR: start the same
command again to resume. At its end, and every six minutes, the policy is tried out with DDIM in 10 steps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from diffaccel.pipelines.bundled.digits.command import training_arguments, training_parser
from diffaccel.pipelines.bundled.digits.denoiser import Recipe, Trainer
from diffaccel.pipelines.bundled.digits.objective import Noised
from diffaccel.pipelines.bundled.metaworld.demonstrations import Windows, record
from diffaccel.pipelines.bundled.metaworld.environment import ACTION, OBSERVATION, TASKS, World, rollout
from diffaccel.pipelines.bundled.metaworld.player import Player
from diffaccel.pipelines.policies.checkpoints import published_scheduler
from diffaccel.pipelines.policies.normalizer import LinearNormalizer
from diffaccel.pipelines.policies.transformer import TransformerForDiffusion
from diffaccel.pipelines.policy import PolicyPipeline

HORIZON, HISTORY, EXECUTED = 16, 2, 8
DEMONSTRATIONS = 300
TRIALS = 25
RECIPE = Recipe(batch=64, muon=5e-3, adamw=1.5e-3, drop=0.0)


class UniformNoise:
    """Prediction of the noise at steps of the published scheduler drawn evenly (DDPM, arXiv:2006.11239)."""

    def __init__(self) -> None:
        self.schedule = published_scheduler()

    def __call__(self, data: Tensor, noise: Tensor, level: Tensor) -> Noised:
        """See `Objective`; the levels are not used."""
        time = torch.randint(self.schedule.config.num_train_timesteps, level.shape)
        return Noised(self.schedule.add_noise(data, noise, time), time, noise, torch.ones_like(level))


class PolicyNoise(nn.Module):
    """The network as the training loop calls it: conditions are the rows of a table of observations."""

    observations: Tensor

    def __init__(self, network: TransformerForDiffusion, observations: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("observations", observations, persistent=False)

    def forward(self, noisy: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        """Predicted noise of trajectories [B, horizon, 4] at whole times [B]."""
        noise: Tensor = self.network(noisy, time, cond=self.observations[rows])
        return noise


def build_network() -> TransformerForDiffusion:
    """The transformer of Diffusion Policy in small: 6 layers of width 128, without dropout."""
    network: TransformerForDiffusion = TransformerForDiffusion(
        input_dim=ACTION,
        output_dim=ACTION,
        horizon=HORIZON,
        n_obs_steps=HISTORY,
        cond_dim=OBSERVATION,
        n_layer=6,
        n_head=4,
        n_emb=128,
        p_drop_emb=0.0,
        p_drop_attn=0.0,
        causal_attn=True,
    )
    return network


def matrices(network: TransformerForDiffusion) -> list[nn.Parameter]:
    """The weight matrices inside the layers."""
    return [parameter for parameter in network.get_submodule("decoder").parameters() if parameter.ndim == 2]


def windows(task: str, output: Path) -> Windows:
    """Demonstrations of a task, recorded once."""
    output.mkdir(parents=True, exist_ok=True)
    place = output / "demonstrations.pt"
    if not place.is_file():
        made = record(task, DEMONSTRATIONS, HISTORY, HORIZON)
        torch.save((made.observations, made.actions, made.episodes), place)
    return Windows(*torch.load(place, weights_only=True))


def tried_out(pipe: PolicyPipeline, task: str) -> dict[str, float]:
    """Share of episodes the policy succeeds in, with DDIM in 10 steps."""
    quick = PolicyPipeline(pipe.denoiser, DDIMScheduler.from_config(pipe.scheduler.config), pipe.normalizer)
    took = rollout([World(task) for _ in range(TRIALS)], range(TRIALS), Player(quick, range(TRIALS), 10))
    return {"success": sum(steps is not None for steps in took) / TRIALS}


def train(task: str, output: Path, recipe: Recipe) -> PolicyPipeline:
    """Train until the recipe's minutes are over; the policy is saved under `output`."""
    data = windows(task, output)
    normalizer = LinearNormalizer.of(data.observations.flatten(0, 1), data.actions.flatten(0, 1))
    torch.manual_seed(recipe.seed)
    network = build_network()
    trained = PolicyNoise(network, normalizer.observation(data.observations))
    actions = normalizer.action(data.actions)
    trainer = Trainer(trained, matrices(network), recipe, output, UniformNoise())
    pipe = PolicyPipeline(network, published_scheduler(), normalizer, HORIZON, HISTORY, EXECUTED)
    if trainer.resume():
        print(f"resumed at iteration {trainer.iteration}, {trainer.seconds / 60:.1f} minutes")

    def draw(size: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(actions), (size,))
        return actions[rows], rows

    trainer.fit(draw, 0, lambda: tried_out(pipe, task))
    trainer.ema.copy_to(trained.parameters())
    pipe.save_pretrained(output / "policy")
    return pipe


def main() -> None:
    """The command line."""
    parser = training_parser(__doc__, "folder of the checkpoint", minutes=45.0)
    parser.add_argument("--task", choices=TASKS, required=True)
    arguments = training_arguments(parser)
    train(arguments.task, arguments.output, Recipe(**{**vars(RECIPE), "minutes": arguments.minutes}))


if __name__ == "__main__":
    main()
