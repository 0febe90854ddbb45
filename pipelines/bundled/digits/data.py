"""Pictures of scenes: scikit-learn's bundled 8x8 handwritten digits, enlarged, placed and coloured."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffaccel.pipelines.bundled.digits.captions import (
    BACKGROUNDS,
    DIGITS,
    FOREGROUNDS,
    LAYOUTS,
    SLOTS,
    Scene,
    Split,
)

SIZE = 32
"""Side of a picture in pixels."""
GLYPH, GLYPH_OF_PAIR = 28, 15
"""Side of the enlarged handwriting in pixels, alone and in a pair."""
PLACES: dict[str, list[tuple[int, int]]] = {
    "whole": [(x, y) for x in (1, 2, 3) for y in (1, 2, 3)],
    "left": [(0, y) for y in (7, 8, 9)],
    "right": [(SIZE - GLYPH_OF_PAIR, y) for y in (7, 8, 9)],
    "top": [(x, 0) for x in (7, 8, 9)],
    "bottom": [(x, SIZE - GLYPH_OF_PAIR) for x in (7, 8, 9)],
}
"""Left upper corners, in pixels, at which handwriting in each slot is drawn."""


def glyphs(split: Split) -> tuple[Tensor, Tensor]:
    """Handwriting of one split: ink [N, 8, 8] in 0..1 and labels [N]; a fifth of each digit's pictures is held out.

    Raises:
        ImportError: scikit-learn is missing; it is needed for training data only.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("rendering training pictures needs scikit-learn: pip install scikit-learn") from error
    pictures, labels = load_digits(return_X_y=True)
    train, held_out = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    chosen = train if split == "train" else held_out
    ink = torch.tensor(pictures[chosen] / 16.0, dtype=torch.float32).view(-1, 8, 8)
    return ink, torch.tensor(labels[chosen])


def place(ink: Tensor, left: int, top: int, size: int) -> Tensor:
    """Enlarge ink [N, 8, 8] to ``size`` pixels and put it on an empty canvas [N, 32, 32] at this left upper corner."""
    right, bottom = SIZE - size - left, SIZE - size - top
    if min(left, top, right, bottom) < 0:
        raise ValueError(f"{size} px handwriting at ({left}, {top}) leaves the {SIZE} px picture")
    large = F.interpolate(ink[:, None], size=(size, size), mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)
    return F.pad(large, (left, right, top, bottom))


def palette(colours: dict[str, tuple[int, int, int]]) -> Tensor:
    """Colours as a table [N, 3] in -1..1."""
    return torch.tensor(list(colours.values()), dtype=torch.float32) / 127.5 - 1


def paint(canvases: Tensor, foregrounds: Tensor, background: Tensor) -> Tensor:
    """Items painted one after another on a background.

    Args:
        canvases: ink of K items [B, K, 32, 32] in 0..1; all zeros where there is no item.
        foregrounds: their colours [B, K, 3] in -1..1.
        background: colours [B, 3] in -1..1.

    Returns:
        Pictures [B, 3, 32, 32] in -1..1.
    """
    images = background[:, :, None, None].expand(-1, -1, *canvases.shape[2:])
    for ink, colour in zip(canvases.unbind(1), foregrounds.unbind(1), strict=True):
        images = torch.lerp(images, colour[:, :, None, None].expand_as(images), ink[:, None].expand_as(images))
    return images


def slot_table() -> tuple[Tensor, Tensor]:
    """Slots of both items of each layout [3, 2], as positions in ``SLOTS``, and whether there is an item [3, 2]."""
    rows = [[SLOTS.index(slot) for slot in slots] for slots in LAYOUTS.values()]
    present = [[True, len(row) == 2] for row in rows]
    return torch.tensor([[row[0], row[-1]] for row in rows]), torch.tensor(present)


def slot_centres() -> Tensor:
    """The middle of each slot's places [5, 2], in pixels (x, y)."""
    sizes = [GLYPH if slot == "whole" else GLYPH_OF_PAIR for slot in SLOTS]
    middles = [torch.tensor(PLACES[slot], dtype=torch.float32).mean(0) for slot in SLOTS]
    return torch.stack([middle + size / 2 for middle, size in zip(middles, sizes, strict=True)])


class WarpDraws(NamedTuple):
    """The random numbers of :func:`warp`.

    Attributes:
        size: of handwriting alone [B], uniform in 0..1.
        size_of_pair: of handwriting in a pair [B], uniform in 0..1.
        shift: to the right and downwards [B, 2], uniform in 0..1.
        angle: of the turn [B], standard normal.
        shear: [B], standard normal.
    """

    size: Tensor
    size_of_pair: Tensor
    shift: Tensor
    angle: Tensor
    shear: Tensor

    @classmethod
    def of(cls, n: int) -> WarpDraws:
        """For n canvases, from torch's global generator."""
        return cls(torch.rand(n), torch.rand(n), torch.rand(n, 2), torch.randn(n), torch.randn(n))


def warp(ink: Tensor, slots: Tensor, draws: WarpDraws | None = None) -> Tensor:
    """Handwriting [B, 8, 8] in these slots [B], on canvases [B, 32, 32].

    Random turn (7 degrees), shear, size (24..31 px alone, 13.5..17 px in a pair) and shift (2 px, 1.2 px in a pair).
    """
    n, draws = len(ink), draws or WarpDraws.of(len(ink))
    alone = slots == SLOTS.index("whole")
    size = torch.where(alone, 24 + 7 * draws.size, 13.5 + 3.5 * draws.size_of_pair)
    shift = (2 * draws.shift - 1) * torch.where(alone, 2.0, 1.2)[:, None]
    angle, shear, zoom = 0.12 * draws.angle, 0.1 * draws.shear, SIZE / size
    rows = [zoom * angle.cos(), zoom * (shear - angle.sin()), zoom * angle.sin(), zoom * angle.cos()]
    turn = torch.stack(rows, 1).view(n, 2, 2)
    centre = (slot_centres()[slots] + shift) / (SIZE / 2) - 1
    matrix = torch.cat([turn, -turn @ centre[:, :, None]], dim=2)
    grid = F.affine_grid(matrix, [n, 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(ink[:, None], grid, mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)


def blemish(images: Tensor) -> Tensor:
    """A little blur and noise, so that decoded pictures are read as well as rendered ones."""
    n = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images.lerp(blurred, torch.rand(n, 1, 1, 1))
    return images + 0.08 * torch.rand(n, 1, 1, 1) * torch.randn_like(images)


class Renderer:
    """Draws random pictures of given scenes from one split's handwriting; canvases of all places are kept ready.

    With ``seed=None`` torch's global generator decides, whose state a checkpoint can hold.
    """

    def __init__(self, split: Split, seed: int | None = 0) -> None:
        ink, labels = glyphs(split)
        self.ink = ink = ink[labels.argsort(stable=True)]
        sizes = {slot: GLYPH if slot == "whole" else GLYPH_OF_PAIR for slot in SLOTS}
        drawn = [place(ink, left, top, sizes[slot]) for slot in SLOTS for left, top in PLACES[slot]]
        self.canvases = torch.stack(drawn, dim=1)
        self.places = torch.tensor([len(PLACES[slot]) for slot in SLOTS])
        self.counts = torch.tensor([int((labels == digit).sum()) for digit in DIGITS])
        self.starts = self.counts.cumsum(0) - self.counts
        self.slots, self.present = slot_table()
        self.foregrounds, self.backgrounds = palette(FOREGROUNDS), palette(BACKGROUNDS)
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, indices: Tensor) -> Tensor:
        """Pictures [B, 3, 32, 32] in -1..1 of the scenes with these indices [B, 6] (see ``Scene.indices``)."""
        canvases = self.canvases.flatten(0, 1)[self.pick(indices)]
        canvases = canvases * self.present[indices[:, 0], :, None, None]
        return paint(canvases, *self.colours(indices))

    def colours(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Foregrounds [B, 2, 3] and background [B, 3] of scenes."""
        return self.foregrounds[indices[:, (2, 4)]], self.backgrounds[indices[:, 5]]

    def uniform(self, size: int) -> Tensor:
        """Random numbers in 0..1 for both items of each picture [B, 2]."""
        return torch.rand(size, 2, generator=self.generator)

    def warp_draws(self, size: int) -> WarpDraws:
        """Random numbers of :meth:`warped`, for so many items."""
        return WarpDraws.of(size)

    def handwriting(self, indices: Tensor) -> Tensor:
        """A random handwriting of both items' digits, as rows [B, 2] of the handwriting ordered by digit."""
        digits = indices[:, (1, 3)]
        draw = self.uniform(len(digits))
        return self.starts[digits] + (draw * self.counts[digits]).long()

    def pick(self, indices: Tensor) -> Tensor:
        """A random handwriting and place for both items, as positions [B, 2] in the flattened ``canvases``."""
        slots, before = self.slots[indices[:, 0]], self.places.cumsum(0) - self.places
        where = self.uniform(len(slots)) * self.places[slots]
        return self.handwriting(indices) * self.canvases.shape[1] + before[slots] + where.long()

    def warped(self, indices: Tensor) -> Tensor:
        """Canvases [B, 2, 32, 32] of both items in random handwriting, each warped by :func:`warp`."""
        slots, present = self.slots[indices[:, 0]], self.present[indices[:, 0]]
        ink = self.ink[self.handwriting(indices)].flatten(0, 1)
        canvases = warp(ink, slots.flatten(), self.warp_draws(len(ink)))
        return canvases.view(-1, 2, SIZE, SIZE) * present[:, :, None, None]

    def draw(self, scenes: list[Scene]) -> Tensor:
        """One picture of each scene, [B, 3, 32, 32] in -1..1."""
        return self(scene_table(scenes))

    def rows(self, table: Tensor, size: int) -> Tensor:
        """Random rows [B] of a table of scenes, single items and pairs equally often if it holds both."""
        if single_items(table) in (0, len(table)):
            return torch.randint(len(table), (size,), generator=self.generator)
        coin, draw = torch.rand(2, size, generator=self.generator)
        return rows_of(table, coin, draw)

    def batch(self, table: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Random pictures of scenes drawn from a table [N, 6] of indices, and the rows drawn [B]."""
        rows = self.rows(table, size)
        return self(table[rows]), rows


def scene_table(chosen: list[Scene]) -> Tensor:
    """Indices of scenes as a table [N, 6]; for :meth:`Renderer.rows` single items come first."""
    return torch.tensor([scene.indices for scene in chosen])


def single_items(table: Tensor) -> int:
    """How many scenes of a table [N, 6] show a single item."""
    return int((table[:, 0] == 0).sum())


def rows_of(table: Tensor, coin: Tensor, draw: Tensor) -> Tensor:
    """Rows [B] of a table of scenes by numbers [B] in 0..1: which kind, where there are two, and which of that kind."""
    single = single_items(table)
    share = 0.5 if 0 < single < len(table) else float(single > 0)
    return torch.where(coin < share, draw * single, single + draw * (len(table) - single)).long()
