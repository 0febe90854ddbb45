"""Pictures the bundled pipelines were trained on, by index: the same index gives the same picture at any time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffaccel.pipelines.bundled.digits import ddpm, dit
from diffaccel.pipelines.bundled.digits.captions import scenes
from diffaccel.pipelines.bundled.digits.data import Renderer, WarpDraws, rows_of, scene_table

LENGTH = 2**20


class BundledRenders(Dataset[dict[str, Any]]):
    """Renders of training handwriting, endless in effect; a picture depends on the seed and its index alone.

    Items hold "pixel_values" (float32 [C, H, W] in -1..1) and "prompt" for `flux-digits` and `sd-digits`,
    "class_labels" for `dit-digits`, and nothing more for the unconditional `ddpm-digits`. Batches are drawn at once,
    as `torch.utils.data.DataLoader` asks for them.

    Args:
        name: of a bundled pipeline.
        length: how many pictures there are.
        seed: of all pictures.

    Raises:
        ValueError: there is no bundled pipeline of this name, or no picture.
        ImportError: scikit-learn is missing, which brings the handwriting.
    """

    def __init__(self, name: str, length: int = LENGTH, seed: int = 0) -> None:
        if name not in RENDERED:
            raise ValueError(f"no bundled pipeline of pictures is called {name!r}; choose from {', '.join(RENDERED)}")
        if length < 1 or seed < 0:
            raise ValueError(f"length must be at least 1 and seed at least 0, got {length} and {seed}")
        self.name, self.length, self.seed = name, length, seed
        self.render = _Renderer()
        self.draw = RENDERED[name](self.render)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The pictures with these indices."""
        if outside := [index for index in indices if not 0 <= index < self.length]:
            raise IndexError(f"there are {self.length} pictures, asked for number {outside[0]}")
        self.render.begin(self.seed, indices)
        pictures, more = self.draw(len(indices))
        columns = {"pixel_values": list(pictures), **more}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class _Renderer(Renderer):
    """A renderer of training handwriting whose random numbers are a function of a seed and the index of a picture."""

    def __init__(self) -> None:
        super().__init__("train")
        self.begin(0, [0])

    def begin(self, seed: int, indices: Sequence[int]) -> None:
        """Draw the numbers of pictures with these indices, for the next batch.

        Philox is a function of a key and a counter; the index is the counter's second word, so that streams never meet.
        """
        streams = [np.random.Generator(np.random.Philox(key=seed, counter=[0, index, 0, 0])) for index in indices]
        uniform = torch.from_numpy(np.stack([stream.random(14, dtype=np.float32) for stream in streams]))
        normal = torch.from_numpy(np.stack([stream.standard_normal(4, dtype=np.float32) for stream in streams]))
        self.row, items, sizes, shift = uniform.split((2, 4, 4, 4), dim=1)
        self.items = iter(items.split(2, dim=1))
        size, size_of_pair = sizes.reshape(-1, 2).unbind(1)
        self.warps = WarpDraws(size, size_of_pair, shift.reshape(-1, 2), *normal.reshape(-1, 2).unbind(1))

    def rows(self, table: Tensor, size: int) -> Tensor:
        """The rows of this batch."""
        coin, draw = self.row.unbind(1)
        return rows_of(table, coin, draw)

    def uniform(self, size: int) -> Tensor:
        """The next numbers of this batch."""
        numbers: Tensor = next(self.items)
        return numbers

    def warp_draws(self, size: int) -> WarpDraws:
        """The numbers of this batch."""
        return self.warps


Draw = Callable[[int], tuple[Tensor, dict[str, list[Any]]]]
"""A batch of a size: pictures, and for each what the pipeline is called with."""


def _captioned(render: Renderer) -> Draw:
    chosen = scenes("train")
    table, captions = scene_table(chosen), [scene.caption for scene in chosen]

    def draw(size: int) -> tuple[Tensor, dict[str, list[Any]]]:
        pictures, rows = render.batch(table, size)
        return pictures, {"prompt": [captions[row] for row in rows]}

    return draw


def _classes(render: Renderer) -> Draw:
    table = scene_table(dit.classes())

    def draw(size: int) -> tuple[Tensor, dict[str, list[Any]]]:
        pictures, rows = render.batch(table, size)
        return pictures, {"class_labels": rows.tolist()}

    return draw


def _grey(render: Renderer) -> Draw:
    grey = ddpm.GreyRenderer(render)
    return lambda size: (grey.batch(size)[0], {})


RENDERED: dict[str, Callable[[Renderer], Draw]] = {
    "flux-digits": _captioned,
    "dit-digits": _classes,
    "sd-digits": _captioned,
    "ddpm-digits": _grey,
}
"""The bundled pipelines of pictures, and how each is drawn for."""
