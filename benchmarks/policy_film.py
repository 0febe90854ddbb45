"""One episode of a policy, uncached beside cached and beside fewer steps: a filmstrip and a film.

    python benchmarks/policy_film.py --task pick-place --strip docs/policy_filmstrip.png \\
        --film docs/policy_film.webp --cells ddpm-100 "ddpm-100 bac bubbling=5 updates=10" ddim-10

All begin in the same place with the same noise. The strip shows them at equal steps of the simulation. The film shows
them at true speed, as if the robot waited for each decision: it stands still while it thinks, for as long as the
decision took here (processor time, one thread).
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from policy_cells import CELLS, Cell
from policy_draw import film_frame, strip
from policy_render import Camera, check_opengl
from tqdm.auto import tqdm

from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.metaworld.environment import Array, World, rollout
from diffaccel.pipelines.bundled.metaworld.player import Player

SIZE = 224, 168
"""Width and height of a picture."""
RATE = 15
"""Pictures of the film a second."""
HELD = 1.5
"""Seconds the film stays on its last picture."""


@dataclass
class Episode:
    """What was seen of an episode.

    Attributes:
        name: of the cell.
        pictures: one a step of the simulation, and one before the first.
        thought: seconds each decision took, by the step before which it was made.
        success: whether the task was done.
    """

    name: str
    pictures: list[Image.Image] = field(default_factory=list)
    thought: dict[int, float] = field(default_factory=dict)
    success: bool = False

    def clock(self, step_seconds: float) -> list[float]:
        """Time at which each picture is reached if the simulation waits for decisions."""
        waited = itertools.accumulate(self.thought.get(step, 0.0) for step in range(len(self.pictures) - 1))
        return [0.0, *(seconds + (step + 1) * step_seconds for step, seconds in enumerate(waited))]


class Watched(Player):
    """A player whose decisions are timed, in an episode that is watched by a camera."""

    def __init__(self, cell: Cell, task: str, seed: int, camera: Camera) -> None:
        super().__init__(cell.pipeline(bundled.policy(task), bundled.policy_observations(task)), [seed])
        self.camera, self.episode = camera, Episode(cell.name)

    def __call__(self, observations: Array, running: Sequence[int]) -> Array:
        """As `Player`."""
        begin = time.process_time()
        actions = super().__call__(observations, running)
        self.episode.thought[max(len(self.episode.pictures) - 1, 0)] = time.process_time() - begin
        return actions

    def look(self, *_: object) -> None:
        """Keep what the camera sees."""
        if not self.episode.pictures:  # a world that was reset is not drawn right before its first step
            self.episode.pictures.append(self.camera.picture())
        self.episode.pictures.append(self.camera.picture())


def played(cell: Cell, world: World, camera: Camera, seed: int) -> Episode:
    """The episode of a seed as a cell plays it."""
    player = Watched(cell, world.task, seed, camera)
    player.pipe(bundled.policy_observations(world.task)[:1])  # so that no decision is the first one
    [took] = rollout([world], [seed], player, watch=player.look)
    player.episode.success = took is not None
    return player.episode


def film(episodes: Sequence[Episode], step_seconds: float) -> Iterator[Image.Image]:
    """The pictures of a film at `RATE`, until all have finished and a little longer."""
    clocks = [episode.clock(step_seconds) for episode in episodes]
    for number in range(round((max(clock[-1] for clock in clocks) + HELD) * RATE)):
        now = number / RATE
        steps = [sum(reached <= now for reached in clock) - 1 for clock in clocks]
        times = [min(now, clock[-1]) for clock in clocks]
        yield film_frame(
            [episode.name for episode in episodes],
            [episode.pictures[step] for episode, step in zip(episodes, steps, strict=True)],
            [done(e, step, seconds) for e, step, seconds in zip(episodes, steps, times, strict=True)],
        )


def done(episode: Episode, step: int, seconds: float) -> str:
    """Where an episode stands, in words."""
    ended = step == len(episode.pictures) - 1
    return f"{seconds:.1f} s, step {step}" + ((", done" if episode.success else ", failed") if ended else "")


def parse() -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=bundled.POLICIES, required=True)
    parser.add_argument("--cells", nargs="+", required=True, choices=list(CELLS), metavar="CELL", help="of policy.py")
    parser.add_argument("--seed", type=int, default=0, help="of start and noise")
    parser.add_argument("--frames", type=int, default=7, help="pictures of each row of the strip")
    parser.add_argument("--strip", type=Path, help="PNG file to write")
    parser.add_argument("--film", type=Path, help="WebP or GIF file to write")
    arguments = parser.parse_args()
    if arguments.strip is None and arguments.film is None:
        parser.error("give --strip, --film or both")
    if arguments.frames < 2:
        parser.error("--frames must be at least 2")
    return arguments


def main() -> None:
    """The command line."""
    arguments = parse()
    check_opengl()
    torch.set_num_threads(1)
    world = World(arguments.task)
    with Camera(world, *SIZE) as camera:
        chosen = tqdm([CELLS[name] for name in arguments.cells], desc="episodes", unit="episode")
        episodes = [played(cell, world, camera, arguments.seed) for cell in chosen]
    if arguments.strip:
        texts = [summary(episode) for episode in episodes]
        picture = strip(texts, [episode.pictures for episode in episodes], arguments.frames)
        picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(arguments.strip, optimize=True)
    if arguments.film:
        first, *others = film(episodes, float(world.simulation.dt))
        first.save(
            arguments.film, save_all=True, append_images=others, duration=1000 // RATE, loop=0, quality=60, method=6
        )


def summary(episode: Episode) -> str:
    """An episode in a line."""
    seconds = sum(episode.thought.values()) / len(episode.thought)
    end = f"{'done after' if episode.success else 'not done in'} {len(episode.pictures) - 1} steps"
    return f"{episode.name}: {1000 * seconds:.0f} ms a decision, {end}"


if __name__ == "__main__":
    main()
