"""A sheet: pictures in rows and columns with words around them, drawn with Pillow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK, PALE, LINE, PAPER = (24, 24, 27), (113, 113, 122), (212, 212, 216), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """A picture, and a few words below it."""

    picture: Image.Image
    note: str = ""


Row = tuple[str, Sequence[Cell]]  # what the row shows, and its pictures


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """A small picture enlarged by the largest whole factor that keeps it within `side` pixels, every pixel a square."""
    factor = max(1, side // max(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def draw_sheet(
    columns: Sequence[tuple[str, str]], rows: Sequence[Row], title: str, footer: str, side: int = 192
) -> Image.Image:
    """Pictures in a table.

    Args:
        columns: name of each column, and a line about it.
        rows: one cell a column.
        title: above the table.
        footer: below the table.
        side: pictures smaller than this are enlarged, see `enlarge`.
    """
    tiles = [[enlarge(cell.picture, side) for cell in cells] for _, cells in rows]
    tile_width, tile_height = (max(tile.size[axis] for row in tiles for tile in row) for axis in (0, 1))
    size = max(14, tile_width // 32)
    pen = _Pen(size)
    gap, line = size, round(size * 1.5)
    widths = [max(tile_width, *(round(pen.length(text)) for text in column)) for column in columns]
    lefts = [gap + sum(widths[:i]) + 2 * gap * i for i in range(len(widths))]
    width = max(lefts[-1] + widths[-1], round(max(map(pen.length, (title, footer)))) + gap) + gap
    head, step = gap + 4 * line, tile_height + round(2.75 * line)
    sheet = Image.new("RGB", (width, head + step * len(rows) + line + gap), PAPER)
    pen.on(sheet)
    pen.write(gap, gap, title, INK)
    for left, (name, about) in zip(lefts, columns, strict=True):
        pen.write(left, gap + 1.5 * line, name, INK)
        pen.write(left, gap + 2.5 * line, about, PALE)
    for i, ((caption, cells), row) in enumerate(zip(rows, tiles, strict=True)):
        top = head + step * i
        pen.write(gap, top, pen.fit(caption, width - 2 * gap), INK)
        for left, cell, tile in zip(lefts, cells, row, strict=True):
            sheet.paste(tile, (left, top + line))
            pen.draw.rectangle((left - 1, top + line - 1, left + tile.width, top + line + tile.height), outline=LINE)
            pen.write(left, top + line + tile_height + size * 0.25, cell.note, PALE)
    pen.write(gap, head + step * len(rows), footer, INK)
    return sheet


class _Pen:
    """Pillow's own font at one size."""

    def __init__(self, size: int) -> None:
        self.font = ImageFont.load_default(size)

    def on(self, sheet: Image.Image) -> None:
        self.draw = ImageDraw.Draw(sheet)

    def length(self, text: str) -> float:
        """Width of a text in pixels."""
        return self.font.getlength(text)

    def fit(self, text: str, width: float) -> str:
        """The text on one line, cut where it would be wider than `width`."""
        text = " ".join(text.split())
        if self.length(text) <= width:
            return text
        kept = bisect_right(range(len(text)), width, key=lambda n: self.length(text[:n] + "...")) - 1
        return text[: max(0, kept)] + "..."

    def write(self, left: float, top: float, text: str, colour: tuple[int, int, int]) -> None:
        """Draw a text from its upper left corner."""
        self.draw.text((left, top), text, fill=colour, font=self.font)
