"""Filmstrips and frames of films from pictures of episodes."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, QUIET, PAPER = "#222222", "#777777", "#ffffff"
GAP, LINE = 6, 20
"""Pixels between pictures, and of a line of text."""


def strip(texts: Sequence[str], rows: Sequence[Sequence[Image.Image]], frames: int) -> Image.Image:
    """Episodes one below the other, each at the same steps, evenly spaced up to the end of the longest.

    Args:
        texts: one an episode, above its row.
        rows: pictures of each episode, one a step; an episode that has ended stays as it was.
        frames: pictures a row.
    """
    last = max(len(row) for row in rows) - 1
    steps = [round(last * i / (frames - 1)) for i in range(frames)]
    width, height = rows[0][0].size
    page = Image.new("RGB", (GAP + frames * (width + GAP), len(rows) * (height + LINE + GAP) + LINE + GAP), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
        top = GAP + number * (height + LINE + GAP)
        draw.text((GAP, top), text, fill=INK, font=font)
        for column, step in enumerate(steps):
            page.paste(row[min(step, len(row) - 1)], (GAP + column * (width + GAP), top + LINE))
    for column, step in enumerate(steps):
        place = GAP + column * (width + GAP), page.height - LINE - GAP // 2
        draw.text(place, f"step {step}", fill=QUIET, font=font)
    return page


def film_frame(names: Sequence[str], pictures: Sequence[Image.Image], states: Sequence[str]) -> Image.Image:
    """Pictures side by side, each with a name above and its state below."""
    width, height = pictures[0].size
    page = Image.new("RGB", (GAP + len(pictures) * (width + GAP), height + 2 * (LINE + GAP)), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, (name, picture, state) in enumerate(zip(names, pictures, states, strict=True)):
        left = GAP + number * (width + GAP)
        draw.text((left, GAP // 2), name, fill=INK, font=font)
        page.paste(picture, (left, LINE + GAP // 2))
        draw.text((left, LINE + GAP + height), state, fill=QUIET, font=font)
    return page
