"""Features of pictures, and the record of everything that two sets of them must share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffaccel.metrics.resize import MODES


class Features(NamedTuple):
    """What a network says of n pictures, float32 on the CPU.

    Attributes:
        pooled: shape (n, d).
        spatial: shape (n, k), features that remember places; None if the network has none.
        logits: shape (n, classes), of a classifier without the bias of its last layer; None if the network is none.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None

    @staticmethod
    def concatenate(parts: Iterable[Features]) -> Features:
        """Features of all pictures of all parts, in order.

        Raises:
            ValueError: there is no part, or parts of different networks.
        """
        parts = list(parts)
        if not parts or len({tuple(tensor is None for tensor in part) for part in parts}) > 1:
            raise ValueError("features must come from one network, of at least one picture")
        pooled, spatial, logits = (
            [tensor for tensor in column if tensor is not None] for column in zip(*parts, strict=True)
        )
        return Features(
            torch.cat(pooled), torch.cat(spatial) if spatial else None, torch.cat(logits) if logits else None
        )


@dataclass(frozen=True)
class Identity:
    """What two sets of features must have in common to be compared.

    Attributes:
        name: of the extractor.
        dimension: of a feature.
        side: height and width the network reads in pixels; None if it takes any.
        resize: how pictures get that side, one of ``resize.MODES``.
        low, high: what bytes 0 and 255 become.
        weights: SHA-256 of the network's weights, see :func:`fingerprint`.
    """

    name: str
    dimension: int
    side: int | None
    resize: str
    low: float
    high: float
    weights: str

    def __post_init__(self) -> None:
        if self.resize not in MODES:
            raise ValueError(f"resize must be one of {', '.join(MODES)}, got {self.resize!r}")
        if self.side is None and self.resize != "none":
            raise ValueError(f"{self.name} does not say which size it reads (input_size), so resize must be 'none'")
        if not self.low < self.high:
            raise ValueError(f"bytes 0 and 255 must become a lower and a higher number, got {self.low} and {self.high}")

    def as_dict(self) -> dict[str, Any]:
        """The record as numbers and text, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Identity:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValueError: it lacks a field or has one too many.
        """
        expected = {field.name for field in fields(cls)}
        if set(record) != expected:
            raise ValueError(f"the record of an extractor has {', '.join(sorted(expected))}; got {', '.join(record)}")
        return cls(**record)

    def difference(self, other: Identity) -> str:
        """The fields that differ with both values, or nothing if none does."""
        own, others = self.as_dict(), other.as_dict()
        return "; ".join(f"{name} {own[name]} and {others[name]}" for name in own if own[name] != others[name])


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes, types and numbers of a network's weights, whatever file they came from.

    The counters of batch normalization are left out: they change nothing, and some files lack them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
