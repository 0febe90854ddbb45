"""LPIPS: how different two pictures look, by the features of a network that was fitted to people's judgement."""

from __future__ import annotations

import hashlib
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.metrics.inception import MissingWeights
from diffaccel.metrics.ssim import check_pair


class Backbone(NamedTuple):
    """The torchvision model below an LPIPS network.

    Attributes:
        model: name of the function in torchvision.models.
        file: its ImageNet weights, as torchvision calls them in torch's cache.
        side: the smallest picture the network takes, in pixels.
    """

    model: str
    file: str
    side: int


BACKBONES = {
    "alex": Backbone("alexnet", "alexnet-owt-7be5be79.pth", 31),
    "vgg": Backbone("vgg16", "vgg16-397923af.pth", 16),
    "squeeze": Backbone("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth", 17),
}
"""By the names of the `lpips` package. Published values are of `alex` unless they say otherwise."""


class Lpips:
    """Learned perceptual image patch similarity (Zhang et al. 2018), version 0.1, by the authors' `lpips` package.

    Its heads come with the package, the backbone's weights do not: torchvision keeps them in torch's cache.

    Args:
        net: `alex`, `vgg` or `squeeze`; their values do not compare.
        download: fetch weights that are not in the cache.
        device: where the network runs.

    Raises:
        ValueError: an unknown `net`.
        ImportError: the `lpips` package or torchvision is not installed, or torchvision does not go with torch.
        MissingWeights: the weights are not in the cache; nothing was built yet.
        OSError: the weights are damaged.

    Attributes:
        identity: `name`, `version`, and `weights`, the SHA-256 of the backbone's file in hex.
    """

    def __init__(self, net: str = "alex", download: bool = False, device: torch.device | str = "cpu") -> None:
        if net not in BACKBONES:
            raise ValueError(f"there is no LPIPS network {net!r}: choose {', '.join(BACKBONES)}")
        if lacking := [name for name in ("lpips", "torchvision") if find_spec(name) is None]:
            raise ImportError(f"LPIPS needs {' and '.join(lacking)}: pip install 'diffaccel[fid]'")
        file = weights_file(net)
        if not (file.is_file() or download):
            raise MissingWeights(
                f"LPIPS needs torchvision's ImageNet weights of {BACKBONES[net].model}: put {file.name} into "
                f"{file.parent}, or allow the download (--download)"
            )
        self.side, self.device = BACKBONES[net].side, torch.device(device)
        self._network = _build(net, file).to(self.device)
        self.identity: dict[str, Any] = {"name": f"lpips-{net}", "version": "0.1", "weights": _sha256(file)}

    @torch.no_grad()
    def __call__(self, pictures: Tensor, reference: Tensor, batch: int = 16, progress: bool = False) -> Tensor:
        """Distance of each picture from its reference.

        Args:
            pictures: shape (n, 3, h, w), floating point, in [0, 1].
            reference: the same shape.
            batch: pictures the network sees at once.
            progress: show a progress bar on stderr.

        Returns:
            Shape (n,), float64, on the CPU: 0 where the two are identical.

        Raises:
            TypeError: pictures that are not floating point.
            ValueError: shapes that differ, values outside [0, 1], other than 3 channels, or too few pixels.
        """
        check_pair(pictures, reference)
        if pictures.shape[1] != 3:
            raise ValueError(f"LPIPS needs pictures of 3 channels, got {pictures.shape[1]}")
        if min(pictures.shape[2:]) < self.side:
            raise ValueError(
                f"{self.identity['name']} needs sides of at least {self.side} pixels, got {tuple(pictures.shape[2:])}"
            )
        parts = []
        for start in tqdm(range(0, len(pictures), batch), desc="LPIPS", unit="batch", disable=not progress):
            a, b = (x[start : start + batch].float().to(self.device) for x in (pictures, reference))
            # normalize: from 0..1 to -1..1, which is what the network takes
            parts.append(self._network(a, b, normalize=True).flatten().double().cpu())
        return torch.cat(parts)


def weights_file(net: str) -> Path:
    """Where torch keeps the weights of a network of `BACKBONES`, whether they are there or not."""
    return Path(torch.hub.get_dir(), "checkpoints", BACKBONES[net].file)


def _build(net: str, file: Path) -> Any:
    try:
        lpips = import_module("lpips")  # untyped, and not installed where types are checked
    except Exception as error:  # an operator of torchvision that torch lacks is a RuntimeError
        raise ImportError(
            f"lpips cannot be imported, most likely because torchvision was built for another torch: {error}"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of arguments that lpips passes to torchvision
        try:
            return lpips.LPIPS(net=net, verbose=False)
        except Exception as error:  # torch's reader has many
            raise OSError(f"cannot load the weights {file}: {error}; delete the file and get it anew") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
