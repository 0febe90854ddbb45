"""Weights of the Inception network of FID: which files hold them, where those lie, and how each is read."""

from __future__ import annotations

import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffaccel.metrics.features import Features
from diffaccel.metrics.inception_network import CLASSES, DIMENSION, HIGH, LOW, SIDE, Inception

__all__ = ["DIMENSION", "HIGH", "LOW", "SIDE", "SOURCES", "MissingWeights", "find", "load_inception"]

SOURCES = {
    "weights-inception-2015-12-05-6726825d.pth": "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0",
    "pt_inception-2015-12-05-6726825d.pth": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights",
    "inception-2015-12-05.pt": "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics",
}
"""Files that hold the network, best first, and where from: one state dict under two names, clean-fid's TorchScript."""

_DEFAULT = next(iter(SOURCES))


class MissingWeights(OSError):  # noqa: N818
    """Weights that are nowhere on this machine; the message says which file to get, from where, and where to put it."""


class TorchScriptInception(nn.Module):
    """clean-fid's file: TorchScript whose ``layers`` give pooled features. It gives no spatial features.

    Its own ``forward`` resizes; ``layers`` reads what :class:`Inception` reads. The bias of its classifier is left out.
    """

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script
        heads = [name for name, weight in script.state_dict().items() if weight.shape == (CLASSES, DIMENSION)]
        self.head = heads[0] if len(heads) == 1 else None

    def forward(self, x: Tensor) -> Features:
        pooled = self.script.layers(x).view(len(x), DIMENSION)
        return Features(pooled, None, None if self.head is None else pooled @ self.script.state_dict()[self.head].T)


def places() -> dict[str, Path]:
    """Where each file is looked for: torch's cache, and the temporary folder, where clean-fid puts its file."""
    cache, temporary = Path(torch.hub.get_dir(), "checkpoints"), Path(tempfile.gettempdir())
    return {name: (temporary if name.endswith(".pt") else cache) / name for name in SOURCES}


def find() -> Path | None:
    """The first of the files that lies in its place."""
    return next((place for place in places().values() if place.is_file()), None)


def load_inception(weights: Path | str | None = None, download: bool = False) -> nn.Module:
    """The network in evaluation mode, on the CPU: pictures (n, 3, 299, 299) in ``LOW``..``HIGH`` to :class:`Features`.

    A file is recognised by what it holds, not by its name, and read without running Python code from it.

    Args:
        weights: one of the three files; looked for in the usual places if not given.
        download: fetch it into torch's cache if no place has it.

    Raises:
        MissingWeights: there is no such file.
        ValueError: the file is damaged or holds another network.
    """
    file = Path(weights) if weights is not None else find()
    if file is None and download:
        file = places()[_DEFAULT]
        fetch(f"{SOURCES[_DEFAULT]}/{_DEFAULT}", file)
    if file is None or not file.is_file():
        raise MissingWeights(_how_to_get(file))
    network = TorchScriptInception(_script(file)) if _is_torchscript(file) else _from_state_dict(file)
    return network.eval().requires_grad_(False)


def fetch(address: str, file: Path) -> None:
    """Download a file whose name ends in the beginning of its SHA-256, which is compared before the file is in place.

    Raises:
        OSError: it cannot be reached, or what came is something else.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(file), hash_prefix=file.stem.rpartition("-")[2])
    except RuntimeError as error:
        raise OSError(f"what {address} sent is not {file.name}: {error}") from error


def _how_to_get(file: Path | None) -> str:
    if file is not None:
        return f"there is no file {file}; expected one of {', '.join(SOURCES)}"
    options = [f"{SOURCES[name]}/{name}\n  to {place}" for name, place in places().items()]
    return (
        "the weights of Inception are not on this machine: download=True (--download) fetches them, or copy one of\n  "
        + ("\n  ".join(options))
    )


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _script(file: Path) -> Any:
    try:
        script = torch.jit.load(file, map_location="cpu")
        pooled = script.layers(torch.zeros(1, 3, SIDE, SIDE))
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{file} is TorchScript, but not clean-fid's Inception, or damaged: {error}") from error
    if pooled.numel() != DIMENSION:
        raise ValueError(f"{file} gives {pooled.numel()} features, Inception {DIMENSION}")
    return script


def _from_state_dict(file: Path) -> nn.Module:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} cannot be read as weights, it may be damaged: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file} does not hold the Inception of FID: it is a {type(state).__name__}, not a state dict")
    network = Inception()
    own = network.state_dict()
    needed = sorted(name for name in own if not name.endswith("num_batches_tracked"))  # some files lack these counters
    if lacking := [name for name in needed if name not in state]:
        raise ValueError(
            f"{file} does not hold the Inception of FID: it lacks {lacking[0]} and {len(lacking) - 1} more"
        )
    for name in needed:
        if state[name].shape != own[name].shape:
            raise ValueError(
                f"{file} does not hold the Inception of FID: {name} is {tuple(state[name].shape)}, expected "
                f"{tuple(own[name].shape)} (torchvision's Inception is another network)"
            )
    network.load_state_dict({name: state[name] for name in needed}, strict=False)
    return network
