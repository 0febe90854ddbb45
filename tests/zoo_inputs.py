"""Arguments for any denoiser's `forward`, from its parameters' names and from what the network itself complains of.

A call is sketched: the layout of the latents, how wide each argument is, which optional ones are given. It is tried,
and repaired by what the error says. Widths start as primes, so that an error that names one tells whose it is.
"""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Iterator, Mapping
from itertools import islice, product
from types import TracebackType
from typing import Any

import torch
from torch import nn

from tests.zoo_makers import LATENTS, LAYOUTS, TIME, Sketch, makers_of

_PRIMES = (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157)
_CHANNELS = ("in_channels", "in_visual_dim", "io_channels", "c_in", "latent_dim", "embedding_dim", "latent_channel")
_REPAIRS, _COMBINATIONS = 16, 60
# Errors that name the width that is and the width that should be, in either order.
_WIDTH_ERRORS = (
    r"\(\d+x(?P<is>\d+) and (?P<want>\d+)x\d+\)",
    r"to have (?P<want>\d+) channels, but got (?P<is>\d+) channels",
    r"size of tensor a \((?P<is>\d+)\) must match the size of tensor b \((?P<want>\d+)\)",
    r"Expected size (?P<want>\d+) but got size (?P<is>\d+)",
    r"normalized_shape=\[(?P<want>\d+)\].*\[(?:\d+, )*(?P<is>\d+)\]",
)


class Inputs:
    """The arguments of a network's `forward`, once `settle` has found out what they have to be.

    Args:
        network: the denoiser.
        hints: makers of arguments whose name does not tell, and functions of the time for timesteps of odd shapes.
            "moving" lists arguments that change from step to step though their names do not tell.
    """

    def __init__(self, network: nn.Module, hints: Mapping[str, Any]) -> None:
        self.network, self.hints = network, hints
        self.parameters = dict(list(inspect.signature(type(network).forward).parameters.items())[1:])
        self.times = [name for name in self.parameters if TIME.match(name)]
        self.sketch: Sketch | None = None
        self.errors: list[tuple[int, str]] = []  # number of repairs before, and the message

    def settle(self) -> None:
        """Find arguments the network takes.

        Raises:
            RuntimeError: none was found; the message is that of the try that came furthest.
        """
        for layout in self._layouts():
            sketch = self._first_sketch(layout)
            for choices in islice(self._choices(sketch), _COMBINATIONS):
                sketch.choices = choices
                if self._succeeds(sketch):
                    self.sketch = sketch
                    return
        raise RuntimeError(f"{type(self.network).__name__}: {max(self.errors, key=lambda error: error[0])[1]}")

    def __call__(self, step: int, steps: int) -> dict[str, Any]:
        """The arguments at one step of a run: latents and time move, conditions stay."""
        assert self.sketch is not None
        return self._arguments(self.sketch, step, steps)

    def _arguments(self, sketch: Sketch, step: int, steps: int) -> dict[str, Any]:
        result = {}
        for seed, name in enumerate(self.parameters):
            moves = name in self.hints.get("moving", ()) or (name.endswith("hidden_states") and "encoder" not in name)
            moves = moves or bool(LATENTS.match(name))
            generator = torch.Generator().manual_seed(1000 * seed + (step if moves else 0))
            if name in self.times and (name in self.hints or self._wanted(sketch, name)):
                result[name] = self.hints.get(name, lambda time: torch.tensor([time]))(1 - step / steps)
            elif name in self.hints:
                result[name] = self.hints[name](sketch, name, generator)
            elif self._wanted(sketch, name):
                result[name] = self._maker(sketch, name)(sketch, name, generator)
        return result

    def _wanted(self, sketch: Sketch, name: str) -> bool:
        """Whether an argument is given: if it has to be, if it is latents or the time, or if an error asked for it."""
        required = self.parameters[name].default is inspect.Parameter.empty
        return required or name in sketch.given or name in ("timestep", "timesteps") or bool(LATENTS.match(name))

    def _maker(self, sketch: Sketch, name: str) -> Any:
        makers = makers_of(name)
        if not makers:
            raise KeyError(f"no rule for an argument named {name}")
        return makers[min(sketch.choices.get(name, 0), len(makers) - 1)]

    def _layouts(self) -> Iterator[str]:
        """All layouts, likeliest first by the network's name and parameters."""
        name, first = type(self.network).__name__, []
        if {"img_ids", "img_shapes", "num_frames", "video_coords", "position_ids"} & self.parameters.keys():
            first += ["tokens"]
        if re.search("1D|Audio|AceStep", name):
            first += ["sequence", "tokens"]
        if re.search("3D|Video|Motion|Temporal", name):
            first += ["video", "frames"]
        yield from dict.fromkeys([*first, "image", *LAYOUTS])

    def _first_sketch(self, layout: str) -> Sketch:
        config = dict(getattr(self.network, "config", {}))
        channels = next((config[key] for key in _CHANNELS if isinstance(config.get(key), int)), None)
        widths = dict(zip(self.parameters, 3 * _PRIMES, strict=False))
        widths |= {name: channels for name in widths if channels and LATENTS.match(name)}
        patch = config.get("patch_size") or 1
        patch = patch[-1] if isinstance(patch, list | tuple) else patch
        axes = [len(value) for key, value in config.items() if "axes_dim" in key and isinstance(value, list | tuple)]
        return Sketch(self.network, layout, widths, patch, axes[0] if axes else 3)

    def _choices(self, sketch: Sketch) -> Iterator[dict[str, int]]:
        """Which maker each argument takes: the first of each, then one change at a time, then two, ..."""
        names = [name for name in self.parameters if name not in {*self.hints, *self.times}]
        names = [name for name in names if self._wanted(sketch, name) and len(makers_of(name)) > 1]
        picked = product(*(range(len(makers_of(name))) for name in names))
        for numbers in sorted(islice(picked, 400), key=sum):
            yield dict(zip(names, numbers, strict=True))

    def _succeeds(self, sketch: Sketch) -> bool:
        """Whether the network takes what is sketched, after such repairs of the sketch as its errors suggest."""
        for repairs in range(_REPAIRS):
            try:
                with torch.no_grad():
                    self.network(**self._arguments(sketch, 0, 10))
                return True
            except Exception as error:
                lines = _failing_lines(error.__traceback__)
                where = " ".join("".join(lines[:1]).split())
                self.errors.append((repairs, f"{sketch.layout}: {type(error).__name__}: {error} at {where}"))
                if not (self._widen(sketch, str(error)) or self._give(sketch, str(error), lines)):
                    return False
        return False

    def _widen(self, sketch: Sketch, message: str) -> bool:
        """Correct the width that an error complains of; whether one was found."""
        for found in filter(None, (re.search(pattern, message) for pattern in _WIDTH_ERRORS)):
            for there, wanted in (("is", "want"), ("want", "is")):
                has, want = int(found[there]), int(found[wanted])
                for name, width in sketch.widths.items():
                    # A multiple of a width is a patch of it.
                    guessed = width in _PRIMES or (there == "is" and LATENTS.match(name))
                    if guessed and has >= width and has % width == 0 and want % (has // width) == 0:
                        sketch.widths[name] = want // (has // width)
                        return True
        return False

    def _give(self, sketch: Sketch, message: str, lines: list[str]) -> bool:
        """Give the optional argument whose absence an error complains of; whether one was found."""
        absent = [name for name, p in self.parameters.items() if p.default is None and name not in sketch.given]
        absent = [name for name in absent if makers_of(name) or name in self.times]
        for text in (message, *(lines if "None" in message else ())):
            if named := [name for name in absent if re.search(rf"\b{name}\b", text)]:
                sketch.given.update(named)
                return True
        return False


def _failing_lines(trace: TracebackType | None) -> list[str]:
    """The source of the statements of diffusers that led to an error, innermost first."""
    lines = []
    while trace is not None:
        code = trace.tb_frame.f_code
        first, last = list(code.co_positions())[trace.tb_lasti // 2][:2]
        if "diffusers" in code.co_filename and first and last:
            lines.append("".join(linecache.getline(code.co_filename, n) for n in range(first, last + 1)))
        trace = trace.tb_next
    return lines[::-1]
