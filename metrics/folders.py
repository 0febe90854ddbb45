"""Folders of pictures: found, paired with another folder's, and read.

A folder may hold a manifest, `manifest.json`, that says what each picture is:
`{"pictures": [{"id": "0", "file": "pictures/0.png", "prompt": "a red 7", "seed": 0}, ...]}`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MANIFEST = "manifest.json"
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_DEEP = ("I", "F")  # beginnings of Pillow's modes of more than 8 bits a channel
_SHOWN = 3


@dataclass(frozen=True)
class Picture:
    """A picture file.

    Attributes:
        id: from the manifest; without one the path below the folder, without suffix.
        name: the path below the folder, without suffix, with forward slashes.
        file: where it is.
        prompt: what it was made from, if the manifest says so.
        seed: what it was made from, if the manifest says so.
    """

    id: str
    name: str
    file: Path
    prompt: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder, in the manifest's order or sorted by path."""

    path: Path
    pictures: tuple[Picture, ...]
    manifest: bool

    @property
    def files(self) -> list[Path]:
        """The picture files, in order."""
        return [picture.file for picture in self.pictures]

    @property
    def prompts(self) -> list[str] | None:
        """The prompt of each picture, in order; None unless the manifest has one for all of them."""
        prompts = [picture.prompt for picture in self.pictures if picture.prompt is not None]
        return prompts if len(prompts) == len(self.pictures) else None


class Pairs(NamedTuple):
    """Pictures of two folders side by side, and the names that only one of the two has."""

    images: tuple[Picture, ...]
    reference: tuple[Picture, ...]
    missing: tuple[str, ...]


def find(folder: Path | str) -> Folder:
    """The pictures below a folder: those its manifest lists, else all files of a picture format.

    Hidden files and files in hidden folders are left out, which is where unfinished pictures lie, and so are all files
    without a suffix of SUFFIXES, such as `0.png.partial`.

    Raises:
        OSError: it is no folder, or a picture of the manifest is missing.
        ValueError: there is no picture, or the manifest is malformed.
    """
    path = Path(folder)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder: give the folder the pictures are in")
    if manifest := (path / MANIFEST).is_file():
        pictures = _listed(path)
    else:
        pictures = [Picture(name := _name(file), name, path / file) for file in _walk(path)]
    if not pictures:
        raise ValueError(f"there is no picture in {path}: looked for {', '.join(sorted(SUFFIXES))}")
    return Folder(path, tuple(pictures), manifest)


def pair(images: Folder, reference: Folder, allow_missing: bool = False) -> Pairs:
    """Pair the pictures of two folders, in the order of `images`.

    By the manifests' ids where both folders have a manifest, else by path below the folder without suffix.

    Args:
        images: pictures to be judged.
        reference: what they are compared with.
        allow_missing: leave out pictures that only one folder has, instead of refusing.

    Raises:
        ValueError: a picture only one folder has, two of one name, two that cannot be the same picture by their prompts
            or seeds, or no pair.
    """
    by = "id" if images.manifest and reference.manifest else "name"
    left, right = _index(images, by), _index(reference, by)
    common = [key for key in left if key in right]
    missing = [key for key in (*left, *right) if (key in left) != (key in right)]
    if not common:
        raise ValueError(f"no picture of {images.path} has a partner of its {by} in {reference.path}")
    if missing and not allow_missing:
        alone = [
            f"{len(names)} only in {folder.path} ({_some(names)})"
            for folder, own, other in ((images, left, right), (reference, right, left))
            if (names := [key for key in own if key not in other])
        ]
        raise ValueError(f"pictures without a partner: {', '.join(alone)}; --allow-missing leaves them out")
    for what in ("prompt", "seed"):
        values = ((key, getattr(left[key], what), getattr(right[key], what)) for key in common)
        if wrong := [key for key, a, b in values if a is not None and b is not None and a != b]:
            raise ValueError(
                f"{len(wrong)} pairs were made from different {what}s ({_some(wrong)}): they cannot be compared"
            )
    return Pairs(tuple(left[key] for key in common), tuple(right[key] for key in common), tuple(missing))


def read(files: Sequence[Path]) -> Tensor:
    """Pictures in 0..1, float32 [n, 3, height, width]; see `read_bytes`."""
    return read_bytes(files).float() / 255


def read_bytes(files: Sequence[Path]) -> Tensor:
    """Pictures as bytes, uint8 [n, 3, height, width]; gray ones get three equal channels.

    Raises:
        OSError: a file cannot be read, or is truncated.
        ValueError: no file, sizes that differ, more than 8 bits a channel, or transparent pixels.
    """
    if not files:
        raise ValueError("there is no picture to read")
    pictures = []
    for file in files:
        pictures.append(_decode(Path(file)))
        if pictures[-1].shape != pictures[0].shape:
            (height, width), (other_height, other_width) = pictures[-1].shape[:2], pictures[0].shape[:2]
            raise ValueError(
                f"{file} has {width}x{height} pixels, but {files[0]} has {other_width}x{other_height}: "
                "all pictures need one size"
            )
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _decode(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One picture, [height, width, 3]."""
    try:
        with Image.open(file) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read the picture {file}: {error}") from error
    if picture.mode.startswith(_DEEP):
        raise ValueError(f"{file} has more than 8 bits a channel (mode {picture.mode}): save it with 8")
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise ValueError(f"{file} has transparent pixels, whose colour is open: save it without transparency")
    return np.asarray(picture.convert("RGB"))


def _walk(folder: Path) -> list[Path]:
    """Paths of picture files relative to the folder, sorted."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    visible = (path for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted((path for path in visible if not (folder / path).is_dir()), key=Path.as_posix)


def _listed(folder: Path) -> list[Picture]:
    """The pictures a folder's manifest lists."""
    path = folder / MANIFEST
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["pictures"]
        pictures = [_entry(folder, row) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is malformed ({error!r}): it should read {{"pictures": [{{"id", "file", "prompt", "seed"}}, ...]}}'
        ) from error
    if twice := [key for key, count in Counter(picture.id for picture in pictures).items() if count > 1]:
        raise ValueError(f"{path} lists {len(twice)} ids more than once ({_some(twice)})")
    if gone := [str(picture.file) for picture in pictures if not picture.file.is_file()]:
        raise FileNotFoundError(f"{path} lists {len(gone)} pictures that are not there ({_some(gone)})")
    return pictures


def _entry(folder: Path, row: dict[str, Any]) -> Picture:
    file, prompt, seed = Path(row["file"]), row.get("prompt"), row.get("seed")
    if file.is_absolute() or ".." in file.parts:
        raise ValueError(f"{file} lies outside the folder")
    if not isinstance(row["id"], str | int) or not isinstance(prompt, str | None) or not isinstance(seed, int | None):
        raise TypeError(f"id, prompt or seed of {file} has a wrong type")
    return Picture(str(row["id"]), _name(file), folder / file, prompt, seed)


def _name(file: Path) -> str:
    return file.with_suffix("").as_posix()


def _index(folder: Folder, by: str) -> dict[str, Picture]:
    index: dict[str, Picture] = {}
    for picture in folder.pictures:
        other = index.setdefault(getattr(picture, by), picture)
        if other is not picture:
            raise ValueError(f"{other.file} and {picture.file} have one name without suffix: keep one of them")
    return index


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
