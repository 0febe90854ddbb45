"""Traces: what calibrated methods learn from, statistics of the features of uncached runs. Kept in a file.

`diffaccel.recording.recording` makes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffaccel.denoisers import DENOISERS, denoisers
from diffaccel.fingerprint import Fingerprint
from diffaccel.moments import Moments
from diffaccel.pipelines.policies import foreign

FORMAT = 1
_TENSORS = tuple(part.name for part in fields(Moments) if part.type == "Tensor")
_PLAIN = tuple(part.name for part in fields(Moments) if part.type != "Tensor")

Networks = Mapping[str, Mapping[str, list[Moments]]]  # by name of the network, by name of the site, one a leaf


@dataclass(frozen=True, eq=False)
class Trace:
    """Statistics of features over uncached runs of one pipeline.

    Attributes:
        networks: by name of the denoiser in its pipeline and by name of the site, the moments of each floating-point
            tensor that the site returns, in the order of `tree_flatten`. Sites in order of execution.
        fingerprints: by name of the denoiser, what the statistics are of.
        runs: number of runs.
        tokens: at most so many tokens of a sample were read, evenly spaced.
        notes: what was worked out from the statistics, as plain data; kept in the file.
    """

    networks: Networks
    fingerprints: Mapping[str, Fingerprint]
    runs: int
    tokens: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Steps of each run."""
        return next(iter(self.fingerprints.values())).steps

    @property
    def level(self) -> str:
        """Level of the sites."""
        return next(iter(self.fingerprints.values())).level

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def check(self, pipe: Any, steps: int, level: str) -> None:
        """Raise ValueError unless the trace is of this pipeline, run for `steps` steps, at this level of sites."""
        present = recordable(pipe)
        if present.keys() != self.networks.keys():
            raise ValueError(
                f"this trace is of {', '.join(self.networks)}, {type(pipe).__name__} has {', '.join(present)}: "
                "record a trace of this pipeline with `diffaccel calibrate`"
            )
        for name, network in present.items():
            now = Fingerprint.of(network, pipe.scheduler, steps, level)
            if found := self.fingerprints[name].differences(now):
                raise ValueError(
                    f"this trace of {name} was recorded with another {' and another '.join(found)}: "
                    "record a trace that fits with `diffaccel calibrate`"
                )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        path = Path(path)
        layout = {
            name: {site: [{part: getattr(m, part) for part in _PLAIN} for m in leaves] for site, leaves in of.items()}
            for name, of in self.networks.items()
        }
        header = {
            "format": FORMAT,
            "runs": self.runs,
            "tokens": self.tokens,
            "fingerprints": {name: mark.as_dict() for name, mark in self.fingerprints.items()},
            "networks": layout,
            "notes": self.notes,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            save_file(self._tensors(), part, {"trace": json.dumps(header)})
            part.chmod(0o644)  # safetensors lets nobody else read it
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, or no trace.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no trace at {path}: record one with `diffaccel calibrate`")
        try:
            with safe_open(path, "pt") as file:
                return cls._read(file)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is no whole trace ({error}): record one with `diffaccel calibrate`") from error

    @classmethod
    def _read(cls, file: Any) -> Trace:
        header = json.loads((file.metadata() or {})["trace"])
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']}, not {FORMAT}")

        def moments(place: str, plain: dict[str, Any]) -> Moments:
            tensors = {part: file.get_tensor(f"{place}/{plain['leaf']}/{part}") for part in _TENSORS}
            return Moments(**plain | {"steps": tuple(plain["steps"])}, **tensors)

        networks = {
            name: {site: [moments(f"{name}/{site}", plain) for plain in leaves] for site, leaves in of.items()}
            for name, of in header["networks"].items()
        }
        fingerprints = {name: Fingerprint(**mark) for name, mark in header["fingerprints"].items()}
        return cls(networks, fingerprints, header["runs"], header["tokens"], header["notes"])

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{name}/{site}/{moments.leaf}/{part}": getattr(moments, part).contiguous()
            for name, of in self.networks.items()
            for site, leaves in of.items()
            for moments in leaves
            for part in _TENSORS
        }


def recordable(pipe: Any) -> dict[str, nn.Module]:
    """The networks a pipeline calls at every step, by name.

    Raises:
        TypeError: the pipeline has none, or no scheduler, as policies of other projects.
    """
    if foreign.recognised(pipe):
        raise TypeError(
            f"{type(pipe).__name__} runs a sampling loop of its own, which cannot be recorded: put network, scheduler "
            "and normalizer into a PolicyPipeline, or use method='bac', which learns from such policies, too"
        )
    found = denoisers(pipe)
    if not found or not hasattr(pipe, "scheduler"):
        raise TypeError(
            f"{type(pipe).__name__} has nothing to record: it needs a scheduler and one of {', '.join(DENOISERS)}"
        )
    return found
