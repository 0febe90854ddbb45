"""Where an evaluation keeps its pictures and times, so that a run that was killed goes on where it stopped.

A file is written under a hidden name and then renamed, so whatever has its final name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffaccel.evaluation.candidates import Candidate
from diffaccel.evaluation.subject import Drawn
from diffaccel.metrics.folders import MANIFEST
from diffaccel.pipelines.image import to_pil

REQUEST = "request.json"


class AnotherEvaluationError(ValueError):
    """The folder holds the parts of an evaluation that asked for something else."""


class Store:
    """A folder with the parts of one evaluation.

    Args:
        folder: created if it is not there.
        request: what was asked for, as plain data; the folder remembers it.
        rows: number of pictures of each candidate.
        chunk: pictures a file.
        fresh: forget an earlier evaluation of another kind.

    Raises:
        AnotherEvaluationError: the folder holds an evaluation of another request, and `fresh` is not given.
        FileExistsError: the folder holds something else.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], rows: int, chunk: int, fresh: bool = False) -> None:
        self.folder, self.rows, self.chunk = folder, rows, chunk
        check(folder, request, fresh)
        if fresh:
            shutil.rmtree(folder / "parts", ignore_errors=True)
            (folder / REQUEST).unlink(missing_ok=True)
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        for leftover in (folder / "parts").rglob(".*.part"):
            leftover.unlink()
        self.write_json(REQUEST, request)

    def chunks(self) -> list[slice]:
        """The rows of each file."""
        return [slice(start, min(start + self.chunk, self.rows)) for start in range(0, self.rows, self.chunk)]

    def missing(self, candidate: Candidate) -> list[slice]:
        """The chunks that are not there yet, or cannot be read."""
        return [rows for rows in self.chunks() if self.load(candidate, rows) is None]

    def save(self, candidate: Candidate, rows: slice, drawn: Drawn) -> None:
        """Keep a chunk: pictures as float16, which leaves a floor of 80 dB, latents as they are."""
        path = self._path(candidate, rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        save_file({"pictures": drawn.pictures.half().contiguous(), "latents": drawn.latents.contiguous()}, part)
        part.replace(path)

    def load(self, candidate: Candidate, rows: slice) -> Drawn | None:
        """A chunk, or None if it is not there, damaged, or of another size."""
        path = self._path(candidate, rows)
        if not path.is_file():
            return None
        try:
            tensors = load_file(path)
            drawn = Drawn(tensors["pictures"].float(), tensors["latents"])
        except (SafetensorError, OSError, KeyError):
            return None
        count = rows.stop - rows.start
        return drawn if len(drawn.pictures) == len(drawn.latents) == count else None

    def each(self, candidate: Candidate) -> Iterator[tuple[slice, Drawn]]:
        """All chunks in order.

        Raises:
            FileNotFoundError: one is missing.
        """
        for rows in self.chunks():
            drawn = self.load(candidate, rows)
            if drawn is None:
                raise FileNotFoundError(
                    f"{self._path(candidate, rows)} is missing or damaged: run the evaluation again"
                )
            yield rows, drawn

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write a file of the folder, whole or not at all."""
        part = self.folder / f".{name}.part"
        part.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        part.replace(self.folder / name)

    def read_json(self, name: str) -> dict[str, Any]:
        """A file of the folder; {} if it is not there."""
        path = self.folder / name
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def save_images(self, candidate: Candidate, prompts: list[str], seeds: list[int]) -> Path:
        """Write the candidate's pictures as PNG files with a manifest, and return their folder."""
        folder = self.folder / "images" / candidate.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        entries = []
        for rows, drawn in self.each(candidate):
            for row, picture in enumerate(to_pil(drawn.pictures), rows.start):
                name = f"{row:05d}.png"
                part = folder / f".{name}"
                picture.save(part, format="PNG")
                part.replace(folder / name)
                entries.append({"id": f"{row:05d}", "file": name, "prompt": prompts[row], "seed": seeds[row]})
        (folder / MANIFEST).write_text(json.dumps({"candidate": candidate.name, "pictures": entries}, indent=1) + "\n")
        return folder

    def _path(self, candidate: Candidate, rows: slice) -> Path:
        return self.folder / "parts" / candidate.folder / f"{rows.start:05d}-{rows.stop:05d}.safetensors"


def check(folder: Path, request: Mapping[str, Any], fresh: bool = False) -> None:
    """Raise unless the evaluation that is asked for can use the folder; see `Store`. Nothing is written."""
    check_folder(folder)
    if fresh or not (folder / REQUEST).is_file():
        return
    held = json.loads((folder / REQUEST).read_text())
    asked = json.loads(json.dumps(request))
    if different := [key for key in sorted({*held, *asked}) if held.get(key) != asked.get(key)]:
        raise AnotherEvaluationError(
            f"{folder} holds an evaluation with another {' and another '.join(different)}: give another folder with "
            "-o, or --fresh to replace it"
        )


def check_folder(folder: Path) -> None:
    """Raise FileExistsError if the folder is there and holds something else than an evaluation."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / REQUEST).is_file():
        raise FileExistsError(f"{folder} is not empty and holds no evaluation: give another folder")


def writable(folder: Path) -> bool:
    """Whether the folder can be created or written into."""
    place = folder
    while not place.exists():
        place = place.parent
    return os.access(place, os.W_OK)


def gather(store: Store, candidate: Candidate, count: int) -> torch.Tensor:
    """The first pictures of a candidate, [count, 3, height, width]."""
    found: list[torch.Tensor] = []
    for rows, drawn in store.each(candidate):
        found.append(drawn.pictures)
        if rows.stop >= count:
            break
    return torch.cat(found)[:count]
