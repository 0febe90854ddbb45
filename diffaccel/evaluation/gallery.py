"""Pictures for the report's page: side by side with the full run's, and what tells them from it, magnified."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffaccel.evaluation.contents import Result, candidates_of, full_run

SHOWN = 128  # side of a small picture on the page, CSS pixels; the largest whole factor that keeps within
KEPT = 384  # side of the copy of a large picture that goes into the page
Pictures = Mapping[str, Sequence[Image.Image]]


@dataclass(frozen=True)
class Tile:
    """A picture as it stands in the page.

    Attributes:
        source: the file as a data URI.
        width: on the page, in CSS pixels.
        height: on the page, in CSS pixels.
        enlarged: whether a pixel of it is a square of several.
        words: what it shows.
    """

    source: str
    width: int
    height: int
    enlarged: bool
    words: str


@dataclass(frozen=True)
class Strip:
    """A column of pictures with a name, and a line about it."""

    name: str
    note: str
    tiles: Sequence[Tile | None]


def strips(result: Result, pictures: Pictures) -> list[Strip]:
    """The columns: the full run (or the reference), then each candidate, with a difference beside each method.

    All differences are magnified alike, so that they can be compared.

    Raises:
        ValueError: a candidate has fewer pictures than there are prompts to show.
    """
    prompts = result["pictures"]["prompts"]
    shown = {name: list(some[: len(prompts)]) for name, some in pictures.items()}
    for name, some in shown.items():
        if len(some) < len(prompts):
            raise ValueError(f"{name} has {len(some)} pictures for {len(prompts)} prompts: hand over one for each")
    full = full_run(result)
    base = full["name"] if full else (result.get("reference") or {}).get("name")
    compared = {candidate["name"] for candidate in candidates_of(result, "method", "images")}
    differences = {
        name: [difference(*pair) for pair in zip(shown[name], shown[base], strict=True)]
        for name in shown
        if name in compared and base in shown and name != base
    }
    gain = magnification([apart for some in differences.values() for apart in some if apart is not None])
    columns = []
    for name in sorted(shown, key=lambda name: name != base):
        words = [f"{prompt}, {name}" for prompt in prompts]
        columns.append(Strip(name, _reduced(shown[name]), list(map(tile, shown[name], words))))
        if name in differences:
            apart = [None if one is None else magnified(one, gain) for one in differences[name]]
            words = [f"{prompt}, difference of {name} to {base}" for prompt in prompts]
            tiles = [None if one is None else tile(one, text) for one, text in zip(apart, words, strict=True)]
            columns.append(Strip("difference", f"{name} to {base}, {_times(gain)}", tiles))
    return columns


def difference(picture: Image.Image, base: Image.Image) -> NDArray[np.float32] | None:
    """Absolute difference of two pictures in 0..1, [height, width, 3]; None if their sizes differ."""
    if picture.size != base.size:
        return None
    a, b = (np.asarray(one.convert("RGB"), dtype=np.float32) / 255 for one in (picture, base))
    return np.abs(a - b)


def magnification(differences: Sequence[NDArray[np.float32]]) -> int:
    """The power of two, 1 to 64, that leaves all but a hundredth of the numbers below 1."""
    if not differences:
        return 1
    high = float(np.quantile(np.concatenate([apart.ravel() for apart in differences]), 0.99))
    return 64 if high == 0 else max(1, min(64, int(2 ** math.floor(-math.log2(high)))))


def magnified(apart: NDArray[np.float32], gain: int) -> Image.Image:
    """A difference times a number, cut off at white."""
    return Image.fromarray((np.minimum(apart * gain, 1) * 255).round().astype(np.uint8))


def tile(picture: Image.Image, words: str) -> Tile:
    """A picture as a data URI: small ones without loss, larger ones reduced to `KEPT` pixels."""
    picture = picture.convert("RGB")
    reduced, file = max(picture.size) > KEPT, io.BytesIO()
    if reduced:
        picture.thumbnail((KEPT, KEPT), Image.Resampling.LANCZOS)
        picture.save(file, "JPEG", quality=92, subsampling=0)
    else:
        picture.save(file, "PNG")
    kind = "jpeg" if reduced else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    side = max(picture.size)
    factor = max(1, SHOWN // side) if side <= SHOWN else min(1.0, 1.5 * SHOWN / side)
    return Tile(source, round(picture.width * factor), round(picture.height * factor), factor > 1, words)


def _reduced(pictures: Sequence[Image.Image]) -> str:
    large = [picture for picture in pictures if max(picture.size) > KEPT]
    return f"reduced from {large[0].width} x {large[0].height} px" if large else ""


def _times(gain: int) -> str:
    return f"magnified {gain} times" if gain > 1 else "as it is"
