"""Auto: the acceleration that reaches a speed-up or a fidelity, found by a few runs of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffaccel.methods.checks import check_whole
from diffaccel.plan import Plan

if TYPE_CHECKING:
    from diffaccel.auto.choice import Choice
    from diffaccel.dimensions import ByDimension
    from diffaccel.forecast import Forecaster
    from diffaccel.methods import Method
    from diffaccel.sites import Site


@dataclass(frozen=True)
class Auto:
    """Choose method, level, plan and forecaster for this pipeline. Exactly one of speedup, psnr and choice is given.

    Full runs of a few prompts are recorded, all candidates forecast from them, and the promising ones drawn on other
    prompts from the same noise as full runs and timed in turn with them (`diffaccel.auto`). What was chosen, and what
    to expect of it, is then `pipe.acceleration.method.choice`; `print` it.

    Attributes:
        speedup: of whole calls of the pipeline; the most faithful candidate that measures as much is chosen.
        psnr: to the full run, in dB; the fastest candidate is chosen whose mean is above it by the lower end of its 95%
            interval.
        prompts: 12 or so, as you will draw, or classes; four are learnt from, others judge. A bundled or a
            class-conditional pipeline needs none.
        steps: what you will call the pipeline with; its default if None.
        call: other arguments of the call, such as {"guidance": 3.5, "height": 512, "width": 512}.
        choice: what was chosen before, or the file it was kept in.
        save: JSON file that keeps the choice, and is used if it is there and fits. None keeps it in the pipeline's own
            folder if it has one, as calibrations are.
        levels: of sites that are tried, see `diffaccel.sites`; all the network has if None.
        pictures: that judge each candidate, at least 4; 8 if None.
        batch: pictures a call, also of those timed; 1 if None.
        rounds: timed runs of what is chosen, at least 5, which it is if None.
        seed: of the first picture; 0 if None.
        progress: show progress bars; False hides them.

    Raises:
        ValueError: none or several of speedup, psnr and choice, or a number out of range.
    """

    speedup: float | None = None
    psnr: float | None = None
    prompts: Sequence[str | int] | None = None
    steps: int | None = None
    call: Mapping[str, Any] | None = None
    choice: Choice | str | Path | None = None
    save: str | Path | None = None
    levels: Sequence[str] | None = None
    pictures: int | None = None
    batch: int | None = None
    rounds: int | None = None
    seed: int | None = None
    progress: bool | None = None
    network: str | None = field(default=None, repr=False)  # see for_network

    def __post_init__(self) -> None:
        given = [name for name in ("speedup", "psnr", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"auto needs exactly one of speedup=4, psnr=35 and choice='file.json', got {found}")
        for name, above in (("speedup", 1), ("psnr", 0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            if value is not None and not (number and value > above):
                raise ValueError(f"{name} must be a number above {above}, got {value!r}")
        least = {"steps": 1, "pictures": 4, "batch": 1, "rounds": 5, "seed": 0}
        check_whole(self, **{name: bound for name, bound in least.items() if getattr(self, name) is not None})
        if self.choice is not None and self.save is not None:
            raise ValueError("save= is for a new choice: leave it out, or ask for speedup= or psnr=")

    @classmethod
    def preset(cls, pipeline: str, **options: Any) -> Auto:
        """The options; there is nothing to preset."""
        return cls(**options)

    @property
    def chosen(self) -> Method:
        """The method that was chosen. Raises ValueError if nothing was yet."""
        from diffaccel.methods import of_network

        method = self.made.method
        return method if self.network is None else of_network(method, self.network)

    @property
    def level(self) -> str:
        """Level of sites of what was chosen."""
        return "model" if self._open else self.chosen.level

    @property
    def order(self) -> int:
        """Anchors used, less one."""
        return 2 if self._open else self.chosen.order

    @property
    def evaluations(self) -> int | None:
        """Evaluations of the network in the runs it was chosen for; None if nothing was chosen yet."""
        return None if self._open else self.made.conditions.evaluations

    def calibrated(self, pipe: Any) -> Auto:
        """With its choice found or made. Raises as `diffaccel.auto.find.find`."""
        from diffaccel.auto.find import find

        return Auto(choice=find(pipe, self))

    def for_network(self, name: str) -> Auto:
        """For one of a pipeline's denoisers."""
        return replace(self, network=name)

    def plan(self, sites: Sequence[Site], steps: int) -> Plan:
        """The plan that was chosen.

        Raises:
            ValueError: nothing was chosen yet, or for runs of another length.
        """
        held = self.made.conditions
        if steps != held.evaluations:
            raise ValueError(
                f"auto chose for {held.evaluations} steps, this run has {steps}: call the pipeline with "
                f"num_inference_steps={held.steps}, or choose anew with steps=..."
            )
        return self.chosen.plan(sites, steps)

    def forecaster(self, site: Site, steps: int) -> Forecaster | ByDimension:
        """The rule that was chosen."""
        return self.chosen.forecaster(site, steps)

    @property
    def _open(self) -> bool:
        """Whether nothing was chosen yet."""
        return self.choice is None or isinstance(self.choice, str | Path)

    @property
    def made(self) -> Choice:
        """The choice. Raises ValueError if nothing was chosen yet."""
        if self.choice is None or isinstance(self.choice, str | Path):
            raise ValueError(
                "auto has chosen nothing yet, since it tries candidates on a pipeline: use "
                "accelerate_pipeline(pipe, 'auto', ...), or `diffaccel tune MODEL`"
            )
        return self.choice
