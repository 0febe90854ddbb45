"""Features: what a site returned, its forecast from anchors, and a stand-in of its shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten


def weighted_sum(anchors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_j weights[j] * anchors[j], in float32 or wider, returned in the anchors' dtype.

    Anchors of weight 0 are not read, so an infinite or missing value in them does no harm. With two anchors, whose
    weights sum to 1, it is one interpolation: one read of each, one write.

    Args:
        anchors: tensors of one shape and dtype.
        weights: one per anchor.
    """
    terms = [(w, anchor) for w, anchor in zip(weights, anchors, strict=True) if w != 0]
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    if len(terms) == 2 and terms[0][1].is_floating_point() and abs(terms[0][0] + terms[1][0] - 1) < 1e-9:
        return torch.lerp(terms[1][1], terms[0][1], terms[0][0])
    dtype = torch.promote_types(anchors[0].dtype, torch.float32)
    total = torch.zeros_like(anchors[0], dtype=dtype)
    for w, anchor in terms:
        total.add_(anchor, alpha=w)
    return total.to(anchors[0].dtype)


class Feature:
    """The output of a site at one step: its tensors, by reference, and the structure that held them."""

    def __init__(self, output: Any) -> None:
        leaves, self.spec = tree_flatten(output)
        self.leaves: list[Any] = leaves

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def like(self, other: Feature) -> bool:
        """Whether both hold tensors of the same shapes and dtypes in the same structure."""
        return self.spec == other.spec and [(t.shape, t.dtype) for t in self.tensors] == [
            (t.shape, t.dtype) for t in other.tensors
        ]


def forecast(anchors: Sequence[Feature], weights: Sequence[float]) -> Any:
    """The output a site would return: every floating-point tensor forecast, all else as the newest anchor had it."""
    newest: Feature = anchors[0]
    spec: TreeSpec = newest.spec
    leaves = [
        weighted_sum([anchor.leaves[i] for anchor in anchors], weights)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
        else leaf
        for i, leaf in enumerate(newest.leaves)
    ]
    return tree_unflatten(leaves, spec)


def stand_in(output: Any) -> Any:
    """An output of the same shapes that owns no memory. NaN everywhere, so that a value that leaks is seen at once."""

    def blank(tensor: Tensor) -> Tensor:
        value = float("nan") if tensor.is_floating_point() else 0
        return tensor.new_full((), value).expand(tensor.shape)

    return tree_map(lambda leaf: blank(leaf) if isinstance(leaf, Tensor) else leaf, output)


def storage_bytes(features: Sequence[Feature]) -> int:
    """Bytes the features keep alive; tensors that share one storage count once."""
    # Told apart by identity: on the meta device all storages have address 0.
    storages = {
        storage._cdata: storage.nbytes()
        for feature in features
        for tensor in feature.tensors
        for storage in (tensor.untyped_storage(),)
    }
    return sum(storages.values())
