"""The world of the bundled pipelines: one or two coloured handwritten digits on a plain background, and the caption."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held-out"]
RGB = tuple[int, int, int]
Indices = tuple[int, int, int, int, int, int]

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
SLOTS = ("whole", "left", "right", "top", "bottom")
"""Where a digit can be."""
LAYOUTS: dict[str, tuple[str, ...]] = {"": ("whole",), "left of": ("left", "right"), "above": ("top", "bottom")}
"""The words between two objects, none for a single object, and the slots of the objects."""
EMPTY = ""

_CAPTION = re.compile(r"an? (\w+) (\d)(?: (left of|above) an? (\w+) (\d))? on an? (\w+) background")


@dataclass(frozen=True, order=True)
class Item:
    """A digit 0..9 and the name of its colour."""

    digit: int
    colour: str

    def __post_init__(self) -> None:
        if self.digit not in DIGITS:
            raise ValueError(f"digit must be one of 0..9, got {self.digit!r}")
        if self.colour not in FOREGROUNDS:
            raise ValueError(f"unknown foreground colour {self.colour!r}; choose from {', '.join(FOREGROUNDS)}")

    @property
    def words(self) -> str:
        """For instance ``a red 7``."""
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.digit}"

    @property
    def indices(self) -> tuple[int, int]:
        """Digit and position in ``FOREGROUNDS``."""
        return self.digit, list(FOREGROUNDS).index(self.colour)


@dataclass(frozen=True, order=True)
class Scene:
    """What a picture shows: one or two items, the background's colour, and how two items lie."""

    items: tuple[Item, ...]
    background: str
    layout: str = ""

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"unknown background colour {self.background!r}; choose from {', '.join(BACKGROUNDS)}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}; choose from {', '.join(map(repr, LAYOUTS))}")
        if len(self.items) != len(self.slots):
            raise ValueError(f"layout {self.layout!r} takes {len(self.slots)} items, got {len(self.items)}")

    @property
    def slots(self) -> tuple[str, ...]:
        """Where the items are, names from ``SLOTS``."""
        return LAYOUTS[self.layout]

    @property
    def caption(self) -> str:
        """The caption, for instance ``a red 7 left of a blue 2 on a white background``."""
        joint = f" {self.layout} " if self.layout else ""
        return f"{joint.join(item.words for item in self.items)} on a {self.background} background"

    @property
    def indices(self) -> Indices:
        """Layout, digit and colour of the first item, of the second (zeros if there is none), and background."""
        first, second = self.items[0].indices, self.items[1].indices if len(self.items) == 2 else (0, 0)
        return list(LAYOUTS).index(self.layout), *first, *second, list(BACKGROUNDS).index(self.background)

    @property
    def split(self) -> Split:
        """A Latin square: all attributes are trained on with each other, but a fifth of all combinations is held out.

        For a pair this also holds for each item: it is trained on in each slot and with each background.
        """
        layout, digit, colour, digit_2, colour_2, background = self.indices
        key = layout + digit + colour + 2 * background + 2 * digit_2 + 3 * colour_2
        return "held-out" if key % 5 == 0 else "train"

    @classmethod
    def of(cls, layout: int, digit: int, colour: int, digit_2: int, colour_2: int, background: int) -> Scene:
        """The scene with these indices, the inverse of :attr:`indices`; a single item ignores the second's."""
        name, colours = list(LAYOUTS)[layout], list(FOREGROUNDS)
        items = (Item(digit, colours[colour]), Item(digit_2, colours[colour_2]))
        return cls(items[: len(LAYOUTS[name])], list(BACKGROUNDS)[background], name)

    @classmethod
    def parse(cls, caption: str) -> Scene:
        """The scene a caption describes.

        Raises:
            ValueError: the text is not a caption of this form.
        """
        match = _CAPTION.fullmatch(caption)
        if match is None:
            raise ValueError(
                "not a caption like 'a red 7 on a white background' or "
                f"'a red 7 left of a blue 2 on a white background': {caption!r}"
            )
        colour, digit, layout, colour_2, digit_2, background = match.groups()
        items = (Item(int(digit), colour), *([Item(int(digit_2), colour_2)] if layout else []))
        return cls(items, background, layout or "")


def scenes(split: Split | None = None, items: Literal[1, 2] | None = None) -> list[Scene]:
    """All scenes, or those of one split or with so many items, in a fixed order: single items come first."""
    if split not in (None, "train", "held-out"):
        raise ValueError(f"split must be 'train' or 'held-out', got {split!r}")
    single = [(Item(digit, colour),) for digit in DIGITS for colour in FOREGROUNDS]
    pairs = [(one, two) for (one,), (two,) in itertools.product(single, repeat=2)]
    every = [
        Scene(group, background, layout)
        for layout, slots in LAYOUTS.items()
        if items in (None, len(slots))
        for group in (single if len(slots) == 1 else pairs)
        for background in BACKGROUNDS
    ]
    return [scene for scene in every if split is None or scene.split == split]


def mixed_scenes(split: Split) -> list[Scene]:
    """The scenes of a split, shuffled once and for all, single items and pairs in turn while there are both."""
    shuffled = []
    for items in (1, 2):
        chosen = scenes(split, items)
        random.Random(items).shuffle(chosen)
        shuffled.append(chosen)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*shuffled))
    return [scene for scene in turns if scene is not None]
