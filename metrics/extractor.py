"""Feature extractors: a network, read in one way, that turns pictures into features."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffaccel.metrics.features import Features, Identity, fingerprint
from diffaccel.metrics.resize import MODES, check_pictures, resize

__all__ = ["KINDS", "Extractor", "Features", "Identity", "as_bytes", "fingerprint", "load_extractor"]

_INCEPTION = {"fd": "FID", "sfd": "sFID", "kd": "KID", "is": "IS", "precision": "precision", "recall": "recall"}

KINDS = tuple(_INCEPTION)
"""What is made from features: Fréchet distance, the same of spatial features, kernel distance, inception score, ..."""


class Extractor:
    """A network that is read in one way: resize, range and weights are fixed by its identity."""

    def __init__(
        self, network: Callable[[Tensor], Tensor | Features], identity: Identity, device: torch.device | str = "cpu"
    ) -> None:
        self.network = network
        self.identity = identity
        self.device = torch.device(device)

    def __call__(self, pictures: Tensor) -> Features:
        """Features of pictures in batches of 64; see :meth:`features`."""
        return self.features(pictures)

    @torch.no_grad()
    def features(self, pictures: Tensor, batch: int = 64, progress: bool = False) -> Features:
        """Features of pictures.

        Args:
            pictures: shape (n, 3, h, w), bytes.
            batch: how many go through the network at once.
            progress: show a progress bar on stderr.

        Raises:
            TypeError: pictures that are not bytes, or a network that returns no tensor.
            ValueError: no picture, another shape, or a network that returns features of another dimension.
        """
        check_pictures(pictures)
        if len(pictures) == 0 or batch < 1:
            raise ValueError(f"at least one picture and a batch of 1 are needed, got {len(pictures)} and {batch}")
        with tqdm(total=len(pictures), desc=self.identity.name, unit="picture", disable=not progress) as bar:
            parts = []
            for part in pictures.split(batch):
                parts.append(self._batch(part))
                bar.update(len(part))
        return Features.concatenate(parts)

    def label(self, kind: str) -> str:
        """Name of a number made from these features: the known one for Inception, one that names the network otherwise.

        Args:
            kind: one of ``KINDS``.

        Raises:
            ValueError: another kind.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if self.identity.name == "inception":
            return _INCEPTION[kind]
        if kind == "fd" and self.identity.name.startswith("fd_"):
            return self.identity.name
        return f"{kind}[{self.identity.name}]"

    def _batch(self, pictures: Tensor) -> Features:
        identity, pictures = self.identity, pictures.to(self.device)
        x = pictures.float() if identity.side is None else resize(pictures, identity.side, identity.resize)
        result = self.network(x * ((identity.high - identity.low) / 255) + identity.low)
        features = result if isinstance(result, Features) else Features(result)
        if not isinstance(features.pooled, Tensor):
            raise TypeError(f"{identity.name} must return a tensor or Features, got {type(result).__name__}")
        pooled = features.pooled.reshape(*features.pooled.shape[:2], -1).squeeze(-1)  # (n, d, 1, 1) too
        if pooled.shape != (len(pictures), identity.dimension):
            raise ValueError(
                f"{identity.name} must return features of shape ({len(pictures)}, {identity.dimension}), got "
                f"{tuple(features.pooled.shape)}"
            )
        return Features(pooled.float().cpu(), _to_cpu(features.spatial), _to_cpu(features.logits))


def _to_cpu(features: Tensor | None) -> Tensor | None:
    return None if features is None else features.float().cpu()


def as_bytes(pictures: Tensor) -> Tensor:
    """Pictures of floating point in 0..1 to bytes, rounded as a picture file is.

    Raises:
        TypeError: pictures that are not floating point.
        ValueError: values outside 0..1.
    """
    if not pictures.is_floating_point():
        raise TypeError(f"pictures must be floating point in 0..1, got {pictures.dtype}")
    if not bool(((pictures >= 0) & (pictures <= 1)).all()):
        raise ValueError("pictures must lie in 0..1: rescale or clamp them")
    return (pictures * 255).round().to(torch.uint8)


def load_extractor(
    spec: str,
    *,
    weights: Path | None = None,
    resize: str | None = None,
    download: bool = False,
    device: torch.device | str = "cpu",
) -> Extractor:
    """An extractor by name.

    ``inception`` is the Inception network of FID, see :mod:`diffaccel.metrics.inception`. ``fd_digits`` is the trunk of
    the bundled checker, for the bundled pipelines' pictures of 32 x 32. Anything else is ``module:attribute``, an
    ``nn.Module`` or a class or function that makes one; the module is looked for in the current folder too. It takes
    (n, 3, h, w) in float32 and returns features (n, d), or :class:`Features`. Three attributes are optional:
    ``input_size``, its side in pixels, if pictures are to be resized; ``value_range``, what bytes 0 and 255 become, if
    not (0.0, 1.0); ``dimension``, which is found out by one picture if not said.

    Args:
        spec: ``inception``, ``fd_digits`` or ``module:attribute``.
        weights: file of weights: one of the three of Inception, or a state dict of the module.
        resize: one of ``resize.MODES``; if not given ``clean``, and ``none`` for ``fd_digits`` and without a side.
        download: allow the weights of Inception to be downloaded where no place has them.
        device: where the network runs.

    Raises:
        MissingWeights: an OSError; weights of Inception that are nowhere on this machine.
        TypeError: an attribute that is and makes no module.
        ValueError: an unknown name or resize, a module that cannot be imported, or weights that do not fit.
    """
    if resize is not None and resize not in MODES:
        raise ValueError(f"resize must be one of {', '.join(MODES)}, got {resize!r}")
    if spec == "inception":
        return _inception(weights, resize or "clean", download, device)
    if spec == "fd_digits":
        return _digits(weights, resize or "none", device)
    return _custom(spec, weights, resize, device)


def _inception(weights: Path | None, resize: str, download: bool, device: torch.device | str) -> Extractor:
    from diffaccel.metrics.inception import DIMENSION, HIGH, LOW, SIDE, load_inception

    network = load_inception(weights, download=download)
    identity = Identity("inception", DIMENSION, SIDE, resize, LOW, HIGH, fingerprint(network))
    return Extractor(network.to(device), identity, device)


def _digits(weights: Path | None, resize: str, device: torch.device | str) -> Extractor:
    from diffaccel.pipelines import bundled

    if weights is not None:
        raise ValueError(f"fd_digits is shipped with its weights and takes no others, got {weights}")
    checker = bundled.checker()
    identity = Identity("fd_digits", checker.config.features, 32, resize, -1.0, 1.0, fingerprint(checker))
    return Extractor(checker.to(device).features, identity, device)


def _custom(spec: str, weights: Path | None, resize: str | None, device: torch.device | str) -> Extractor:
    network = _import(spec)
    if weights is not None:
        _load_weights(network, weights)
    network = network.to(device).eval().requires_grad_(False)
    side = getattr(network, "input_size", None)
    low, high = (float(bound) for bound in getattr(network, "value_range", (0.0, 1.0)))
    dimension = getattr(network, "dimension", None) or _probe(network, side or 64, device)
    resize = resize or ("none" if side is None else "clean")
    return Extractor(network, Identity(spec, int(dimension), side, resize, low, high, fingerprint(network)), device)


def _import(spec: str) -> nn.Module:
    module, _, attribute = spec.partition(":")
    if not module or not attribute:
        raise ValueError(f"the extractor must be inception, fd_digits or module:attribute, got {spec!r}")
    here, path = str(Path.cwd()), list(sys.path)
    sys.path.append(here)  # last, so that nothing that is installed is hidden
    try:
        found = attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import the extractor {spec!r} from {here} or PYTHONPATH: {error}") from error
    finally:
        sys.path[:] = path
    network = found if isinstance(found, nn.Module) or not callable(found) else found()
    if not isinstance(network, nn.Module):
        raise TypeError(f"the extractor {spec!r} must be or make an nn.Module, got {type(network).__name__}")
    return network


def _load_weights(network: nn.Module, file: Path) -> None:
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{file} holds no weights of {type(network).__name__}: {error}") from error


@torch.no_grad()
def _probe(network: nn.Module, side: int, device: torch.device | str) -> int:
    result = network(torch.zeros(1, 3, side, side, device=device))
    pooled: Tensor = result.pooled if isinstance(result, Features) else result
    if not isinstance(pooled, Tensor) or pooled.ndim < 2:
        raise TypeError(f"an extractor must return features of shape (n, d), {type(network).__name__} does not")
    return pooled.shape[1]
