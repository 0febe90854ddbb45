"""What Dot is trained on: a folder of pictures, or what the bundled pipelines were trained on.

A dataset here is a map-style `torch.utils.data.Dataset` of mappings with "pixel_values" (float [C, H, W] in -1..1) or
"latents" (as the network sees them, [C, h, w]), and with what the pipeline is called with: "prompt" (str),
"class_labels" (int), or nothing more. Any such dataset will do.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from diffaccel.blueprint import default_size, latent_scale_of
from diffaccel.denoisers import denoisers
from diffaccel.metrics import folders
from diffaccel.morse.clean import clean_samples
from diffaccel.morse.renders import BundledRenders
from diffaccel.pipelines.source import call_defaults

__all__ = ["BundledRenders", "PictureFolder", "clean_samples"]

METADATA = "metadata.jsonl"
Condition = Literal["prompt", "class_labels"]


@dataclass(frozen=True)
class _Entry:
    file: Path
    condition: Any = None


class PictureFolder(Dataset[dict[str, Any]]):
    """The pictures below a folder, in Hugging Face's imagefolder convention, all of one size.

    Prompts are in the folder's `metadata.jsonl`, a line for each picture with `file_name` and `text` (or `prompt`); or
    else in a text file beside each picture, `fox.txt` for `fox.png`. Classes are the names of the folders the pictures
    are in: labels of the pipeline, or numbers. Pictures are resized with Pillow's bicubic filter, so that the shorter
    side fits, and cropped to their middle, always in the same way.

    Args:
        folder: of the pictures.
        size: height and width in pixels, or the side of a square.
        channels: 3 for colour, 1 for grey.
        condition: what a picture comes with; None for unconditional pipelines.
        labels: numbers of classes by name, for "class_labels": `pipe.labels`.

    Raises:
        OSError: it is no folder, or a picture that `metadata.jsonl` lists is not there or cannot be read.
        ValueError: there is no picture, a size below 1, other channels, a picture without caption, a malformed
            `metadata.jsonl`, a class that is not known, or a picture with transparent pixels or 16 bits. Pictures are
            only opened here; one that is cut short is found when it is read, by an OSError.
    """

    def __init__(
        self,
        folder: Path | str,
        size: int | tuple[int, int],
        channels: int = 3,
        condition: Condition | None = None,
        labels: Mapping[str, int] | None = None,
    ) -> None:
        self.path, self.condition = Path(folder), condition
        self.height, self.width = (size, size) if isinstance(size, int) else size
        if min(self.height, self.width) < 1:
            raise ValueError(f"pictures need at least 1 pixel a side, got {self.height} x {self.width}")
        if channels not in (1, 3):
            raise ValueError(f"pictures of a folder have 1 or 3 channels, not {channels}")
        self.channels = channels
        if condition == "class_labels":
            self.entries = _by_class(self.path, labels or {})
        elif condition == "prompt":
            self.entries = _captioned(self.path)
        else:
            self.entries = [_Entry(file) for file in folders.find(self.path).files]
        for entry in self.entries:
            _header(entry.file)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self.entries[index]
        item: dict[str, Any] = {"pixel_values": self._picture(entry.file)}
        return item if self.condition is None else item | {self.condition: entry.condition}

    @classmethod
    def of(cls, pipe: Any, folder: Path | str, size: int | tuple[int, int] | None = None) -> PictureFolder:
        """The pictures of a folder as a pipeline makes them: its size, its channels, its prompts or classes.

        Raises:
            ValueError, OSError: see the class.
        """
        network: Any = next(iter(denoisers(pipe).values()))
        vae: Any = getattr(pipe, "vae", None)
        channels = (network if vae is None else vae).config.in_channels
        if size is None:
            defaults, scale = call_defaults(str(pipe.name_or_path)), 1 if vae is None else latent_scale_of(vae.config)
            height, width = default_size(network, scale)
            size = defaults.get("height") or height, defaults.get("width") or width
        return cls(folder, size, channels, condition_of(type(pipe)), getattr(pipe, "labels", None))

    def _picture(self, file: Path) -> Tensor:
        """A picture [C, H, W] in -1..1."""
        picture = Image.fromarray(folders.read_bytes([file])[0].permute(1, 2, 0).numpy())
        picture = picture.convert("L") if self.channels == 1 else picture
        fitted = ImageOps.fit(picture, (self.width, self.height), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(fitted)).view(self.height, self.width, self.channels)
        return values.permute(2, 0, 1).float() / 127.5 - 1


def condition_of(kind: type[Any]) -> Condition | None:
    """What a call of the pipeline class `kind` takes for each picture: None for unconditional pipelines."""
    accepted = inspect.signature(kind.__call__).parameters
    return "prompt" if "prompt" in accepted else "class_labels" if "class_labels" in accepted else None


def _captioned(folder: Path) -> list[_Entry]:
    """Pictures with their prompts."""
    found, metadata = folders.find(folder), folder / METADATA
    if metadata.is_file():
        captions = _listed(metadata)
        if gone := [name for name in captions if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{metadata} lists {len(gone)} pictures that are not there ({_some(gone)})")
        entries = [_Entry(file, captions.get(file.relative_to(folder).as_posix())) for file in found.files]
        where = f"a line in {metadata}"
    elif found.prompts:
        return [_Entry(picture.file, picture.prompt) for picture in found.pictures]
    else:
        entries = [_Entry(file, _text_beside(file)) for file in found.files]
        where = f"a line in {metadata}, or a text file beside it"
    if bare := [entry.file.name for entry in entries if not entry.condition]:
        raise ValueError(f"{len(bare)} pictures have no caption ({_some(bare)}): give each {where}")
    return entries


def _listed(metadata: Path) -> dict[str, str]:
    """Captions by the path of the picture below the folder."""
    captions = {}
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions[Path(row["file_name"]).as_posix()] = str(row["text"] if "text" in row else row["prompt"]).strip()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{metadata}, line {number}, is malformed ({error!r}): it should read {{"file_name": ..., "text": ...}}'
            ) from error
    return captions


def _text_beside(file: Path) -> str:
    text = file.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else ""


def _by_class(folder: Path, labels: Mapping[str, int]) -> list[_Entry]:
    """Pictures with the numbers of their classes."""
    entries = []
    for file in folders.find(folder).files:
        inside = file.relative_to(folder).parts
        if len(inside) == 1:
            raise ValueError(f"{file} is in no class: put pictures into folders named by their classes")
        if inside[0] not in labels and not inside[0].isdecimal():
            known = f"known are {_some(list(labels))}" if labels else "the pipeline names no classes"
            raise ValueError(f"{folder / inside[0]} is no class: {known}; or name folders by the numbers of classes")
        entries.append(_Entry(file, int(labels.get(inside[0], inside[0]))))
    return entries


def _header(file: Path) -> None:
    """Open a picture without reading its pixels."""
    try:
        with Image.open(file):
            pass
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"cannot read the picture {file}: {error}") from error


def _some(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
