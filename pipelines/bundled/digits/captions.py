"""The world of the bundled pipelines: one coloured handwritten digit on a plain background, and its caption."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held-out"]
RGB = tuple[int, int, int]

FOREGROUNDS: dict[str, RGB] = {
    "red": (214, 40, 40),
    "green": (22, 138, 56),
    "blue": (38, 84, 214),
    "purple": (142, 36, 170),
    "orange": (245, 124, 0),
    "cyan": (0, 188, 212),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "yellow": (255, 235, 120),
}
DIGITS = tuple(range(10))
EMPTY = ""

_CAPTION = re.compile(r"an? (\w+) (\d) on an? (\w+) background")


@dataclass(frozen=True, order=True)
class Scene:
    """What a picture shows: a digit 0..9 and the names of its two colours."""

    digit: int
    foreground: str
    background: str

    def __post_init__(self) -> None:
        if self.digit not in DIGITS:
            raise ValueError(f"digit must be one of 0..9, got {self.digit!r}")
        if self.foreground not in FOREGROUNDS:
            raise ValueError(f"unknown foreground colour {self.foreground!r}; choose from {', '.join(FOREGROUNDS)}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"unknown background colour {self.background!r}; choose from {', '.join(BACKGROUNDS)}")

    @property
    def caption(self) -> str:
        """The caption, for instance ``a red 7 on a white background``."""
        article = "an" if self.foreground[0] in "aeiou" else "a"
        return f"{article} {self.foreground} {self.digit} on a {self.background} background"

    @property
    def indices(self) -> tuple[int, int, int]:
        """Digit, position in ``FOREGROUNDS`` and position in ``BACKGROUNDS``."""
        return self.digit, list(FOREGROUNDS).index(self.foreground), list(BACKGROUNDS).index(self.background)

    @property
    def split(self) -> Split:
        """A Latin square: each digit is trained on with each colour, but a fifth of all combinations is held out."""
        digit, foreground, background = self.indices
        return "held-out" if (digit + foreground + 2 * background) % 5 == 0 else "train"

    @classmethod
    def of(cls, digit: int, foreground: int, background: int) -> Scene:
        """The scene with these indices, the inverse of :attr:`indices`."""
        return cls(digit, list(FOREGROUNDS)[foreground], list(BACKGROUNDS)[background])

    @classmethod
    def parse(cls, caption: str) -> Scene:
        """The scene a caption describes.

        Raises:
            ValueError: the text is not a caption of this form.
        """
        match = _CAPTION.fullmatch(caption)
        if match is None:
            raise ValueError(f"not a caption like 'a red 7 on a white background': {caption!r}")
        return cls(int(match[2]), match[1], match[3])


def scenes(split: Split | None = None) -> list[Scene]:
    """All scenes, or those of one split, in a fixed order."""
    if split not in (None, "train", "held-out"):
        raise ValueError(f"split must be 'train' or 'held-out', got {split!r}")
    every = [Scene(d, f, b) for d in DIGITS for f in FOREGROUNDS for b in BACKGROUNDS]
    return [scene for scene in every if split is None or scene.split == split]
