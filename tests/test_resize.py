"""Are pictures resized as each mode says? ``test_references.py`` compares with the reference implementations."""

import pytest
import torch
from torch import Tensor

from diffaccel.metrics.resize import MODES, resize


def random_pictures(height: int, width: int, n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_the_right_size_are_only_converted(mode: str) -> None:
    pictures = random_pictures(20, 20)
    resized = resize(pictures, 20, mode)
    assert resized.dtype == torch.float32
    assert torch.equal(resized, pictures.float())


@pytest.mark.parametrize("mode", ["clean", "torchmetrics", "tf1"])
@pytest.mark.parametrize("size", [(9, 31), (64, 48)])
def test_any_size_becomes_a_square_in_range(mode: str, size: tuple[int, int]) -> None:
    resized = resize(random_pictures(*size, n=3), 24, mode)
    assert resized.shape == (3, 3, 24, 24)
    assert resized.min() >= 0
    assert resized.max() <= 255


def test_tensorflow_samples_from_the_corner() -> None:
    ramp = torch.tensor([0, 80, 160, 240], dtype=torch.uint8).expand(1, 3, 4, 4)
    # Pixel i of 8 lies at i / 2; at 3.5 there is nothing to the right and the last pixel is repeated.
    assert resize(ramp, 8, "tf1")[0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200, 240, 240]
    # Pixel i of 2 lies at 2 i: every other pixel, and what lies between is not seen.
    assert resize(ramp, 2, "tf1")[0, 0, 0].tolist() == [0, 160]


def test_only_tensorflow_aliases_a_fine_pattern() -> None:
    stripes = torch.tensor([0, 200], dtype=torch.uint8).repeat(16).expand(1, 3, 32, 32)
    assert resize(stripes, 16, "tf1").unique().tolist() == [0]
    for mode in ("clean", "torchmetrics"):
        inner = resize(stripes, 16, mode)[..., 2:-2]
        assert (inner - 100).abs().max() < 30


def test_clean_is_neither_rounded_nor_out_of_range() -> None:
    edge = torch.tensor([0] * 8 + [255] * 8, dtype=torch.uint8).expand(1, 3, 16, 16)
    resized = resize(edge, 23, "clean")  # the bicubic filter overshoots at the edge
    assert (resized.min(), resized.max()) == (0, 255)
    assert (resized != resized.round()).any()


@pytest.mark.parametrize(
    ("pictures", "side", "mode", "error", "message"),
    [
        (torch.zeros(1, 3, 8, 8), 8, "clean", TypeError, r"bytes \(torch.uint8\), got torch.float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 8, "clean", ValueError, r"\(n, 3, h, w\), got \(3, 8, 8\)"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), 8, "clean", ValueError, r"got \(1, 8, 8, 3\)"),
        (torch.zeros(1, 3, 8, 0, dtype=torch.uint8), 8, "clean", ValueError, r"got \(1, 3, 8, 0\)"),
        (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), 8, "none", ValueError, "reads pictures of 8 x 8, got 9 x 8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 0, "clean", ValueError, "at least 1 pixel, got 0"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 8, "lanczos", ValueError, "clean, torchmetrics, tf1, none, got"),
    ],
)
def test_says_what_is_wrong(pictures: Tensor, side: int, mode: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resize(pictures, side, mode)
