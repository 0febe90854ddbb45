"""Features: what a site returned, its forecast from anchors, and a stand-in of its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    if not terms:
        return torch.zeros_like(anchors[0])
    (w, anchor), *others = terms
    total = anchor.to(torch.promote_types(anchor.dtype, torch.float32)) * w
    for w, anchor in others:
        total.add_(anchor, alpha=w)
    return total.to(anchors[0].dtype)


def weighted_sum_by_dimension(anchors: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_j weights[j, d] * anchors[j] for every feature dimension d, in float32, returned in the anchors' dtype.

    Args:
        anchors: tensors of one shape and dtype, newest first.
        weights: shape (anchors, dims), float32, on their device; columns sum to 1 or not, as the method likes.

    Raises:
        ValueError: the features have another number of dimensions than there are weights for.
    """
    axis, dims = dims_axis(anchors[0]), weights.shape[1]
    if anchors[0].shape[axis] != dims:
        raise ValueError(
            f"a feature of shape {tuple(anchors[0].shape)} has {anchors[0].shape[axis]} dimensions, the calibration is "
            f"for {dims}: calibrate this model anew with `diffaccel calibrate`"
        )
    shape = [1] * anchors[0].ndim
    shape[axis] = dims
    total = anchors[0].float() * weights[0].view(shape)
    for anchor, row in zip(anchors[1:], weights[1:], strict=True):
        total.addcmul_(anchor.float(), row.view(shape))
    return total.to(anchors[0].dtype)


def dims_axis(tensor: Tensor) -> int:
    """The axis of feature dimensions: channels of pictures and videos come second, those of tokens last."""
    return 1 if tensor.ndim >= 4 else tensor.ndim - 1


_ONE_TENSOR: TreeSpec = tree_flatten(torch.empty(0))[1]


class Feature:
    """The output of a site at one step: its tensors, by reference, and the structure that held them."""

    def __init__(self, output: Any) -> None:
        self.leaves: list[Any]
        if isinstance(output, Tensor):  # as most are; small networks are called faster than trees are walked
            self.leaves, self.spec = [output], _ONE_TENSOR
        else:
            self.leaves, self.spec = tree_flatten(output)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def like(self, other: Feature) -> bool:
        """Whether both hold tensors of the same shapes and dtypes in the same structure."""
        return self.spec == other.spec and [(t.shape, t.dtype) for t in self.tensors] == [
            (t.shape, t.dtype) for t in other.tensors
        ]


def forecast(anchors: Sequence[Feature], weights: Sequence[float] | Mapping[int, Tensor | Sequence[float]]) -> Any:
    """The output a site would return: every floating-point tensor forecast, all else as the newest anchor had it.

    Args:
        anchors: newest first.
        weights: one per anchor; or by leaf, and then also one per anchor and feature dimension, shape (anchors, dims).
    """
    newest: Feature = anchors[0]
    spec: TreeSpec = newest.spec
    leaves = list(newest.leaves)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            held = [anchor.leaves[i] for anchor in anchors]
            own = weights[i] if isinstance(weights, Mapping) else weights
            leaves[i] = weighted_sum_by_dimension(held, own) if isinstance(own, Tensor) else weighted_sum(held, own)
    return leaves[0] if spec is _ONE_TENSOR else tree_unflatten(leaves, spec)


def stand_in(output: Any, made: Any = None) -> Any:
    """An output of the same shapes that owns no memory. NaN everywhere, so that a value that leaks is seen at once.

    One that was `made` before is returned again if it fits a single tensor.
    """
    if isinstance(output, Tensor) and isinstance(made, Tensor) and _alike(output, made):
        return made

    def blank(tensor: Tensor) -> Tensor:
        value = float("nan") if tensor.is_floating_point() else 0
        return tensor.new_full((), value).expand(tensor.shape)

    return tree_map(lambda leaf: blank(leaf) if isinstance(leaf, Tensor) else leaf, output)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


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
