"""Pictures of scenes: scikit-learn's bundled 8x8 handwritten digits, enlarged, placed and coloured."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diffaccel.pipelines.bundled.digits.captions import BACKGROUNDS, DIGITS, FOREGROUNDS, Scene, Split

SIZE = 32
"""Side of a picture in pixels."""
GLYPH = 28
"""Side of the enlarged handwriting in pixels."""
JITTER = 1
"""Largest shift of the handwriting from the centre, in pixels."""


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


def place(ink: Tensor, dx: int = 0, dy: int = 0, size: int = GLYPH) -> Tensor:
    """Enlarge ink [N, 8, 8] to ``size`` pixels and put it on an empty canvas [N, 32, 32], shifted by (dx, dy)."""
    margin = (SIZE - size) // 2
    if max(abs(dx), abs(dy)) > margin:
        raise ValueError(f"a shift of ({dx}, {dy}) moves {size} px handwriting out of the {SIZE} px picture")
    large = F.interpolate(ink[:, None], size=(size, size), mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)
    left, top = margin + dx, margin + dy
    return F.pad(large, (left, SIZE - size - left, top, SIZE - size - top))


def palette(colours: dict[str, tuple[int, int, int]]) -> Tensor:
    """Colours as a table [N, 3] in -1..1."""
    return torch.tensor(list(colours.values()), dtype=torch.float32) / 127.5 - 1


def paint(canvas: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Ink [B, 32, 32] in 0..1 and two colours [B, 3] in -1..1 to pictures [B, 3, 32, 32] in -1..1."""
    ink = canvas[:, None]
    return ink * foreground[:, :, None, None] + (1 - ink) * background[:, :, None, None]


class Renderer:
    """Draws random pictures of given scenes from one split's handwriting; canvases of all shifts are kept ready.

    With ``seed=None`` torch's global generator decides, whose state a checkpoint can hold.
    """

    def __init__(self, split: Split, seed: int | None = 0) -> None:
        ink, labels = glyphs(split)
        order = labels.argsort(stable=True)
        shifts = range(-JITTER, JITTER + 1)
        self.canvases = torch.stack([place(ink[order], dx, dy) for dx in shifts for dy in shifts], dim=1)
        self.counts = torch.tensor([int((labels == digit).sum()) for digit in DIGITS])
        self.starts = self.counts.cumsum(0) - self.counts
        self.foregrounds, self.backgrounds = palette(FOREGROUNDS), palette(BACKGROUNDS)
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, indices: Tensor) -> Tensor:
        """Pictures [B, 3, 32, 32] in -1..1 of the scenes with these indices [B, 3] (digit, foreground, background)."""
        digit, foreground, background = indices.unbind(1)
        canvas = self.canvases.flatten(0, 1)[self.pick(digit)]
        return paint(canvas, self.foregrounds[foreground], self.backgrounds[background])

    def pick(self, digit: Tensor) -> Tensor:
        """A random handwriting and shift of each digit [B], as positions in the flattened ``canvases``."""
        draw = torch.rand(len(digit), generator=self.generator)
        which = self.starts[digit] + (draw * self.counts[digit]).long()
        shifts = self.canvases.shape[1]
        return which * shifts + torch.randint(shifts, (len(digit),), generator=self.generator)

    def draw(self, scenes: list[Scene]) -> Tensor:
        """One picture of each scene, [B, 3, 32, 32] in -1..1."""
        return self(torch.tensor([scene.indices for scene in scenes]))

    def batch(self, table: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Random pictures of scenes drawn from a table [N, 3] of indices, and the rows drawn [B]."""
        rows = torch.randint(len(table), (size,), generator=self.generator)
        return self(table[rows]), rows


def scene_table(chosen: list[Scene]) -> Tensor:
    """Indices of scenes as a table [N, 3]."""
    return torch.tensor([scene.indices for scene in chosen])
