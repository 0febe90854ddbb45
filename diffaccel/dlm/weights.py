"""Files of a checkpoint: found or fetched, checked by their headers, then read file by file into a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

_SMALL = ["*.json", "*.txt", "*.jinja", "tokenizer.model"]
_WEIGHTS = {"*.safetensors": "model.safetensors", "*.bin": "pytorch_model.bin"}  # pattern: name of a single file


@dataclass(frozen=True)
class Source:
    """A folder, or a hub id and where its files are kept; its weights are fetched when they are asked for.

    Attributes:
        folder: where the files are.
        repository: the hub id; None for a folder.
        local_files_only: never ask the hub.
    """

    folder: Path
    repository: str | None = None
    local_files_only: bool = False

    @classmethod
    def find(cls, path: str | Path, local_files_only: bool = False) -> Source:
        """The folder itself, or that of a hub id with everything but its weights.

        Raises:
            OSError: neither a folder nor to be had from the hub.
        """
        folder = Path(path).expanduser()
        if folder.is_dir():
            return cls(folder)
        return cls(_snapshot(str(path), _SMALL, local_files_only), str(path), local_files_only)

    def __str__(self) -> str:
        return self.repository or str(self.folder)

    def config(self) -> dict[str, Any]:
        """What config.json says.

        Raises:
            OSError: it is not there, or no JSON object.
        """
        file = self.folder / "config.json"
        try:
            return dict(json.loads(file.read_text()))
        except FileNotFoundError as error:
            raise OSError(f"{self} has no config.json: give the folder of a checkpoint, or a hub id") from error
        except (ValueError, TypeError) as error:
            raise OSError(f"{file} is not a JSON object: {error}") from error

    def weights(self) -> list[Path]:
        """The files of weights, one or the shards that the index names; fetched if need be.

        Raises:
            OSError: they are not there, or not complete.
        """
        for pattern, single in _WEIGHTS.items():
            if self.repository is not None:
                _snapshot(self.repository, [pattern], self.local_files_only)
            index = self.folder / f"{single}.index.json"
            if index.is_file():
                names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
                if missing := [name for name in names if not (self.folder / name).is_file()]:
                    raise OSError(f"{self} has an index but not its files {missing[:3]}: it is not complete")
                return [self.folder / name for name in names]
            if (self.folder / single).is_file():
                return [self.folder / single]
        raise OSError(f"{self} has neither of {', '.join(_WEIGHTS.values())} nor an index of shards")


def fill(
    model: nn.Module,
    source: Source,
    rename: Callable[[str], str],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Give the parameters of a model on the meta device the stored tensors; there is never a second copy of all.

    Args:
        model: its parameters are replaced.
        source: of the tensors.
        rename: name in the file to name in the model.
        dtype: of the parameters; None keeps each as it is stored.
        device: where they go; None is the CPU.

    Raises:
        ValueError: names or shapes that do not fit; nothing was read before.
        OSError: a file is missing.
    """
    files = source.weights()
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: shape for file in files for name, shape in _shapes(file)}
    named = {rename(name): shape for name, shape in stored.items()}
    _compare(source, "has no", wanted.keys() - named.keys())
    _compare(source, "has unknown", [name for name in stored if rename(name) not in wanted])
    _compare(source, "has another shape of", [name for name, shape in wanted.items() if named[name] != shape])
    tensors: dict[str, Tensor] = {}
    for file in tqdm(files, desc="Loading weights", unit="file", disable=len(files) < 2):
        for name, tensor in _tensors(file):
            tensors[rename(name)] = tensor.to(device=device or "cpu", dtype=dtype or tensor.dtype)
    model.load_state_dict(tensors, assign=True)


def _shapes(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes; safetensors have them in a header, a .bin is mapped and its data not read."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                yield name, tuple(opened.get_slice(name).get_shape())
    else:
        for name, tensor in _mapped(file).items():
            yield name, tuple(tensor.shape)


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                yield name, opened.get_tensor(name)
    else:
        yield from _mapped(file).items()


def _mapped(file: Path) -> dict[str, Tensor]:
    return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=True))


def _compare(source: Source, what: str, names: Iterable[str]) -> None:
    if found := sorted(names):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(f"{source} {what} {', '.join(found[:3])}{more}: its layout is not the one config.json names")


def _snapshot(repository: str, patterns: list[str], local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=local_files_only))
    except HFValidationError as error:
        reason = f"neither a folder nor a hub id ({error})"
    except GatedRepoError:
        reason = "its owner asks for consent: give it on the model's page, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "not there, or private: check the id, or log in with `hf auth login`"
    except OSError as error:
        reason = f"it is no folder, and the hub did not give it ({error})"
    raise OSError(f"cannot load {repository}: {reason}")
