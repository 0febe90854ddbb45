"""Checkpoints of a Dot's training: everything that is needed to go on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from diffaccel.morse.power import Power
from diffaccel.morse.recipe import DotRecipe

_FREE = ("checkpoint_every",)  # settings that may change from one start to the next


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        round: batches of data used up.
        iteration: steps of the optimizer done.
        losses: since the last note.
        history: of notes.
    """

    round: int = 0
    iteration: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"round": self.round, "iteration": self.iteration, "losses": self.losses, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)


class Checkpoint:
    """The checkpoint in a folder, written aside and put in place when it is whole.

    Args:
        accelerator: holds Dot, optimizer and learning rate.
        folder: of the training.
        recipe: its settings; a checkpoint of others is refused.
        others: what else has a state.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, recipe: DotRecipe, *others: EMAModel | Power | Progress):
        self.accelerator, self.folder, self.recipe = accelerator, folder, recipe
        accelerator.register_for_checkpointing(*others)

    @property
    def place(self) -> Path:
        """Where it is."""
        return self.folder / "checkpoint"

    def save(self) -> None:
        """Write it; the last one stays until this one is whole."""
        partial, old = self.place.with_suffix(".partial"), self.place.with_suffix(".old")
        main = self.accelerator.is_main_process
        if main and partial.exists():
            shutil.rmtree(partial)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        if main:
            (partial / "recipe.json").write_text(json.dumps(self.recipe.as_dict()))
            if self.place.exists():
                self.place.rename(old)
            partial.rename(self.place)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def load(self) -> bool:
        """Go on from it, and say whether there was one. Raises ValueError if it is of other settings."""
        place = self.place if self.place.exists() else self.place.with_suffix(".old")  # killed between two renames
        if not place.exists():
            return False
        theirs = json.loads((place / "recipe.json").read_text())
        ours = json.loads(json.dumps(self.recipe.as_dict()))
        if other := [
            f"{name} ({theirs.get(name)}, now {ours[name]})" for name in ours if theirs.get(name) != ours[name]
        ]:
            changed = [text for text in other if not text.startswith(_FREE)]
            if changed:
                raise ValueError(
                    f"the checkpoint in {self.folder} is of a training with other settings: {', '.join(changed)}; "
                    "train with those, in another folder, or with resume=False"
                )
        self.accelerator.load_state(str(place))
        return True
