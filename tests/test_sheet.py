"""Are pictures put on a sheet unchanged, in their places, with all words inside?"""

import numpy as np
import pytest
from PIL import Image

from diffaccel.sheet import PAPER, Cell, draw_sheet, enlarge


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "enlarged"), [((32, 32), (192, 192)), ((50, 20), (150, 60)), ((700, 200), (700, 200))]
)
def test_enlarging_repeats_pixels(size: tuple[int, int], enlarged: tuple[int, int]) -> None:
    picture = noise(*size, seed=0)
    larger = enlarge(picture, 192)
    assert larger.size == enlarged
    factor = enlarged[0] // size[0]
    np.testing.assert_array_equal(np.asarray(larger), np.kron(np.asarray(picture), np.ones((factor, factor, 1), int)))


def test_every_picture_is_on_the_sheet_row_by_row() -> None:
    pictures = [[noise(8, 8, seed=3 * row + column) for column in range(3)] for row in range(2)]
    columns = [("one", ""), ("two", "a line that is much wider than the picture below it"), ("three", "")]
    rows = [(f"row {i}", [Cell(picture, "note") for picture in row]) for i, row in enumerate(pictures)]
    sheet = np.asarray(draw_sheet(columns, rows, "title", "footer", side=16))
    found = [[places(sheet, np.asarray(enlarge(picture, 16))) for picture in row] for row in pictures]
    assert all(len(place) == 1 for row in found for place in row)
    tops = np.array([[place[0][0] for place in row] for row in found])
    lefts = np.array([[place[0][1] for place in row] for row in found])
    assert (tops[0] == tops[0, 0]).all()
    assert (tops[1] == tops[1, 0]).all()
    assert (lefts[0] == lefts[1]).all()
    assert tops[1, 0] - tops[0, 0] > 16
    assert (np.diff(lefts[0]) > 16).all()


def places(sheet: np.ndarray, tile: np.ndarray) -> list[tuple[int, int]]:
    """Where the tile lies on the sheet."""
    height, width, _ = tile.shape
    corners = np.argwhere((sheet[: -height + 1, : -width + 1] == tile[0, 0]).all(-1))
    return [(y, x) for y, x in corners if (sheet[y : y + height, x : x + width] == tile).all()]


def test_words_stay_inside_and_long_captions_are_cut() -> None:
    rows = [("a very long prompt " * 40, [Cell(noise(300, 200, 0), "a note")])]
    sheet = np.asarray(draw_sheet([("a column", "its line")], rows, "a title wider than the picture " * 3, "a footer"))
    edge = np.concatenate([sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]])
    assert (edge == PAPER).all()
    assert sheet.shape[1] < 1000
