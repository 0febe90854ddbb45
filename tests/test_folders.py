"""Are pictures found, paired and read as they are, and refused where that cannot be?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffaccel.metrics.folders import Folder, find, pair, read, read_bytes


def save(path: Path, value: int = 0, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode)).save(path)
    return path


def folder(path: Path, *names: str) -> Folder:
    for name in names:
        save(path / name)
    return find(path)


def manifest(path: Path, *rows: dict[str, Any]) -> Folder:
    for row in rows:
        save(path / row["file"])
    (path / "manifest.json").write_text(json.dumps({"pictures": rows}))
    return find(path)


def test_pictures_are_found_in_all_folders_below_sorted_by_path(tmp_path: Path) -> None:
    found = folder(tmp_path, "b.png", "a/10.jpg", "a/9.WEBP", "a-b.bmp")
    assert [picture.name for picture in found.pictures] == ["a-b", "a/10", "a/9", "b"]
    assert [file.relative_to(tmp_path).as_posix() for file in found.files] == [
        "a-b.bmp",
        "a/10.jpg",
        "a/9.WEBP",
        "b.png",
    ]
    assert (found.manifest, found.prompts) == (False, None)


def test_hidden_unfinished_and_other_files_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    for name in (".2.png", ".cache/3.png", "4.png.partial", ".5.png.tmp", "notes.txt", "weights.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "6.png").mkdir()
    assert [picture.name for picture in find(tmp_path).pictures] == ["1"]


def test_a_folder_that_is_itself_below_a_hidden_one_is_searched(tmp_path: Path) -> None:
    assert len(folder(tmp_path / ".cache" / "run", "1.png").pictures) == 1


def test_a_manifest_says_what_the_pictures_are_and_in_which_order(tmp_path: Path) -> None:
    rows = [
        {"id": "second", "file": "x/2.png", "prompt": "a red 7", "seed": 5},
        {"id": 1, "file": "1.png", "prompt": "a green 3", "seed": None},
    ]
    save(tmp_path / "unlisted.png")
    found = manifest(tmp_path, *rows)
    assert [(p.id, p.name, p.prompt, p.seed) for p in found.pictures] == [
        ("second", "x/2", "a red 7", 5),
        ("1", "1", "a green 3", None),
    ]
    assert found.prompts == ["a red 7", "a green 3"]
    assert manifest(tmp_path, rows[0], {"id": "1", "file": "1.png"}).prompts is None


def test_pairing_is_by_path_without_suffix(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", "a/1.png", "b/1.png", "2.png")
    reference = folder(tmp_path / "reference", "2.jpg", "b/1.jpg", "a/1.webp")
    pairs = pair(images, reference)
    assert [p.name for p in pairs.images] == [p.name for p in pairs.reference] == ["2", "a/1", "b/1"]
    assert [p.file.suffix for p in pairs.reference] == [".jpg", ".webp", ".jpg"]
    assert pairs.missing == ()


def test_pairing_is_by_id_only_if_both_have_a_manifest(tmp_path: Path) -> None:
    images = manifest(tmp_path / "images", {"id": "x", "file": "1.png"}, {"id": "y", "file": "2.png"})
    crossed = manifest(tmp_path / "crossed", {"id": "y", "file": "1.png"}, {"id": "x", "file": "2.png"})
    pairs = pair(images, crossed)
    assert [p.id for p in pairs.reference] == ["x", "y"]
    assert [p.name for p in pairs.reference] == ["2", "1"]
    plain = folder(tmp_path / "plain", "1.png", "2.png")
    assert [p.name for p in pair(images, plain).reference] == ["1", "2"]


def test_a_missing_partner_is_refused_by_name_unless_allowed(tmp_path: Path) -> None:
    images = folder(tmp_path / "images", *(f"{i}.png" for i in range(6)))
    reference = folder(tmp_path / "reference", "5.png", "other.png")
    with pytest.raises(
        ValueError, match=r"5 only in .*images \(0, 1, 2, \.\.\.\), 1 only in .*reference \(other\); --allow-missing"
    ):
        pair(images, reference)
    pairs = pair(images, reference, allow_missing=True)
    assert [p.name for p in pairs.images] == ["5"]
    assert pairs.missing == ("0", "1", "2", "3", "4", "other")
    with pytest.raises(ValueError, match=r"no picture of .*images has a partner of its name"):
        pair(images, folder(tmp_path / "strange", "z.png"), allow_missing=True)


def test_two_pictures_of_one_name_cannot_be_paired(tmp_path: Path) -> None:
    both = folder(tmp_path / "images", "1.png", "1.jpg")
    assert len(both.pictures) == 2
    with pytest.raises(ValueError, match=r"1\.jpg and .*1\.png have one name"):
        pair(both, folder(tmp_path / "reference", "1.png"))


@pytest.mark.parametrize(("what", "values"), [("seed", (1, 2)), ("prompt", ("a 1", "a 2"))])
def test_pictures_of_different_prompts_or_seeds_are_not_a_pair(tmp_path: Path, what: str, values: Any) -> None:
    row = {"id": "1", "file": "1.png"}
    left, right = (manifest(tmp_path / str(value), row | {what: value}) for value in values)
    with pytest.raises(ValueError, match=rf"1 pairs were made from different {what}s \(1\)"):
        pair(left, right)
    assert len(pair(left, manifest(tmp_path / "silent", row)).images) == 1


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ValueError, "malformed"),
        ("[]", ValueError, "malformed"),
        ('{"pictures": 3}', ValueError, "malformed"),
        ('{"pictures": []}', ValueError, "there is no picture"),
        ('{"pictures": ["1.png"]}', ValueError, "malformed"),
        ('{"pictures": [{"file": "1.png"}]}', ValueError, "malformed .*'id'"),
        ('{"pictures": [{"id": "1", "file": "1.png", "seed": "x"}]}', ValueError, "malformed .*wrong type"),
        ('{"pictures": [{"id": "1", "file": "../1.png"}]}', ValueError, "malformed .*outside"),
        (
            '{"pictures": [{"id": "1", "file": "1.png"}, {"id": 1, "file": "1.png"}]}',
            ValueError,
            r"more than once \(1\)",
        ),
        ('{"pictures": [{"id": "1", "file": "2.png"}]}', FileNotFoundError, r"1 pictures that are not there .*2\.png"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    save(tmp_path / "1.png")
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(error, match=message):
        find(tmp_path)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no picture in .*\.png"):
        find(tmp_path)
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        find(save(tmp_path / "1.png"))


def test_pictures_are_read_as_they_were_saved(tmp_path: Path) -> None:
    pixels = torch.randint(256, (3, 3, 4, 5), dtype=torch.uint8)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file)
    assert read_bytes(files).equal(pixels)
    assert read(files).equal(pixels / 255)
    assert read([files[2], files[0]]).equal(pixels[[2, 0]] / 255)
    assert read(files).dtype == torch.float32


def test_gray_palette_and_opaque_pictures_become_rgb(tmp_path: Path) -> None:
    files = [save(tmp_path / "gray.png", 100, mode="L"), save(tmp_path / "alpha.png", 255, mode="RGBA")]
    Image.new("RGB", (5, 4), (7, 8, 9)).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    values = read_bytes([*files, tmp_path / "palette.png"])[:, :, 0, 0]
    assert values.tolist() == [[100] * 3, [255] * 3, [7, 8, 9]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("empty.png", b"", "cannot read the picture .*empty"), ("text.jpg", b"not a picture", "cannot read .*text")],
)
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OSError, match=message):
        read([save(tmp_path / "fine.png"), tmp_path / name])
    with pytest.raises(OSError, match="gone"):
        read([tmp_path / "gone.png"])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_truncated_picture_is_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OSError, match=rf"cannot read the picture .*cut\.{suffix}"):
        read([file])


def test_a_picture_of_another_size_is_named(tmp_path: Path) -> None:
    files = [save(tmp_path / "a.png"), save(tmp_path / "b.png", size=(4, 5))]
    with pytest.raises(ValueError, match=r"b\.png has 4x5 pixels, but .*a\.png has 5x4"):
        read(files)
    with pytest.raises(ValueError, match="no picture to read"):
        read([])


def test_pictures_whose_bytes_would_be_a_guess_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"deep\.png has more than 8 bits"):
        read([save(tmp_path / "deep.png", 40_000, mode="I;16")])
    with pytest.raises(ValueError, match=r"clear\.png has transparent pixels"):
        read([save(tmp_path / "clear.png", 100, mode="RGBA")])


def test_a_picture_too_large_to_be_meant_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(OSError, match=r"cannot read the picture .*large\.png"):
        read([save(tmp_path / "large.png")])
