"""Ship a trained policy: ``python -m diffaccel.pipelines.bundled.metaworld.export --task pick-place --output DIR``.

Writes the policy (float16 safetensors), some of the observations it was trained on, and a model card with its success
in simulation, measured here, beside this package or under ``--to``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

from diffaccel.metrics.bootstrap import Estimate
from diffaccel.metrics.policy import success_rate
from diffaccel.pipelines.bundled import OBSERVATIONS, POLICIES, policy
from diffaccel.pipelines.bundled.digits.export import readable
from diffaccel.pipelines.bundled.metaworld.card import card
from diffaccel.pipelines.bundled.metaworld.demonstrations import Windows
from diffaccel.pipelines.bundled.metaworld.environment import World, rollout
from diffaccel.pipelines.bundled.metaworld.player import Player
from diffaccel.pipelines.policy import PolicyPipeline

SHIPPED = 64
"""Observations that are shipped for calibration."""
AT_ONCE = 50
"""Episodes that run at once."""


def export(task: str, output: Path, to: Path, episodes: int = 100, note: str = "") -> Path:
    """Write the folder of a policy.

    Args:
        task: which it was trained for.
        output: folder of its training.
        to: where its own folder goes.
        episodes: in which its success is measured; 0 leaves that out of the card.
        note: what the card says of the training beside the recipe.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: the training under `output` has not ended yet.
    """
    trained = output / "policy"
    if not trained.is_dir():
        raise FileNotFoundError(f"no policy under {output}: let the training command end there first")
    folder = to / f"policy_{task.replace('-', '_')}"
    pipe = PolicyPipeline.from_pretrained(trained, local_files_only=True)
    pipe.denoiser.half()  # not the normalizer: rounded ranges would move the actions
    pipe.save_pretrained(folder)
    for config in (folder / "model_index.json", *folder.glob("*/config.json")):
        _without_place(config)
    windows = Windows(*torch.load(output / "demonstrations.pt", weights_only=True))
    rows = torch.randperm(len(windows.observations), generator=torch.Generator().manual_seed(0))[:SHIPPED]
    save_file({"observations": windows.observations[rows]}, folder / OBSERVATIONS)
    readable(folder)
    measured = successes(task, folder, episodes) if episodes else {}
    history = torch.load(output / "state.pt", weights_only=True)["history"][-1]
    (folder / "README.md").write_text(card(task, policy(task, folder), windows, len(rows), history, measured, note))
    return folder


def successes(task: str, folder: Path, episodes: int) -> dict[str, Estimate]:
    """Share of episodes of seeds 0, 1, ... that the policy of a folder succeeds in, by name of the sampler."""
    pipe = policy(task, folder)
    ddim = PolicyPipeline(**{**pipe.components, "scheduler": DDIMScheduler.from_config(pipe.scheduler.config)})
    worlds = [World(task) for _ in range(min(episodes, AT_ONCE))]
    found = {}
    for name, made, steps in (("DDPM, 100 steps", pipe, 100), ("DDIM, 10 steps", ddim, 10)):
        took: list[int | None] = []
        for start in range(0, episodes, AT_ONCE):
            seeds = range(start, min(start + AT_ONCE, episodes))
            took += rollout(worlds[: len(seeds)], seeds, Player(made, seeds, steps))
        found[name] = success_rate([steps is not None for steps in took])
        print(f"{name}: {found[name].value:.3f} of {episodes} episodes ({found[name].low:.3f}-{found[name].high:.3f})")
    return found


def _without_place(config: Path) -> None:
    """Remove where a part was loaded from."""
    entries: dict[str, Any] = json.loads(config.read_text())
    entries.pop("_name_or_path", None)
    config.write_text(json.dumps(entries, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=POLICIES, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the training command")
    parser.add_argument("--to", type=Path, default=Path(__file__).resolve().parents[1], help="where to write")
    parser.add_argument("--episodes", type=int, default=100, help="in which success is measured; 0 for a card without")
    parser.add_argument("--note", default="", help="a sentence about the training, for the card")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(export(arguments.task, arguments.output, arguments.to, arguments.episodes, arguments.note))


if __name__ == "__main__":
    main()
