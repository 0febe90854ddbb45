"""Second moments of a feature over the steps of uncached runs: the error of every forecast follows from them.

A forecast sum_j w_j F(a_j) of step t has the mean squared error v' G v, where G is the Gram matrix of the steps,
G[s, s'] = mean F(s) F(s'), and v is 1 at t and -w_j at a_j. Memory does not grow with the number of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffaccel.descriptors import KINDS, descriptors
from diffaccel.feature import dims_axis


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics of one feature, by dimension, over tokens, samples, guidance branches and runs.

    Each token's mean over the steps of its run is split off before anything is squared: what stays the same all along
    is often far larger than what moves, and would drown in rounding the small errors of good forecasts.
    For FLUX.1 (3072 dimensions) and 50 steps `centred` takes 31 MB.

    Attributes:
        leaf: position of the feature among the leaves of its site's output, in the order of `tree_flatten`.
        axis: axis of the dimensions in the feature, 1 (channels of pictures and videos) or -1.
        steps: the steps that rows stand for, 0 to steps - 1 unless the network works in one part of the run only.
        samples: number of tokens the means were taken over; those of all samples, branches and runs count.
        centred: mean C(s) C(s'), where F = C + m with m the mean over steps, shape (dims, steps, steps), float32.
        cross: mean C(s) m, shape (dims, steps), float32.
        offset: mean m^2, shape (dims,), float32.
        descriptors: of every run, kinds as in `diffaccel.descriptors.KINDS`, shape (runs, kinds, dims), float32.
    """

    leaf: int
    axis: int
    steps: tuple[int, ...]
    samples: int
    centred: Tensor
    cross: Tensor
    offset: Tensor
    descriptors: Tensor

    def __post_init__(self) -> None:
        dims, steps = len(self.offset), len(self.steps)
        shapes = (self.centred.shape, self.cross.shape, self.offset.shape, self.descriptors.shape[1:])
        if shapes != ((dims, steps, steps), (dims, steps), (dims,), (len(KINDS), dims)):
            raise ValueError(f"moments of {dims} dimensions and {steps} steps have tensors of shapes {shapes}")

    @classmethod
    def of(cls, series: Tensor, leaf: int, axis: int, steps: tuple[int, ...]) -> Moments:
        """The moments of one run. Sums are in float64, which TF32 settings do not touch, where the device has it.

        Args:
            series: shape (steps, samples, dims).
            leaf: see the class.
            axis: see the class.
            steps: see the class.

        Raises:
            ValueError: a value is not finite, or fewer than 4 steps.
        """
        kinds = descriptors(series)
        wide = series.to(torch.float32 if series.device.type == "mps" else torch.float64)
        mean = wide.mean(0)
        # (dims, steps, samples): one matrix product a dimension
        centred = (wide - mean).permute(2, 0, 1).contiguous()
        samples = series.shape[1]
        moments = cls(
            leaf=leaf,
            axis=axis,
            steps=steps,
            samples=samples,
            centred=_kept(centred @ centred.mT / samples),
            cross=_kept((centred @ mean.T.unsqueeze(2)).squeeze(2) / samples),
            offset=_kept(mean.square().mean(0)),
            descriptors=_kept(torch.stack([kinds[kind] for kind in KINDS]).unsqueeze(0)),
        )
        if not all(part.isfinite().all() for part in (moments.centred, moments.offset, moments.descriptors)):
            raise ValueError("a feature holds values that are not finite in float32: check the pipeline's dtype")
        return moments

    def merged(self, other: Moments) -> Moments:
        """The moments of both, each token weighing the same.

        Raises:
            ValueError: they are not of one feature.
        """
        if (self.leaf, self.axis, self.steps, self.dims) != (other.leaf, other.axis, other.steps, other.dims):
            raise ValueError(
                f"runs differ: leaf {self.leaf} with {self.dims} dimensions at steps {list(self.steps)}, then "
                f"leaf {other.leaf} with {other.dims} dimensions at steps {list(other.steps)}"
            )
        samples = self.samples + other.samples
        share = other.samples / samples
        return Moments(
            leaf=self.leaf,
            axis=self.axis,
            steps=self.steps,
            samples=samples,
            centred=self.centred.lerp(other.centred, share),
            cross=self.cross.lerp(other.cross, share),
            offset=self.offset.lerp(other.offset, share),
            descriptors=torch.cat([self.descriptors, other.descriptors]),
        )

    @property
    def dims(self) -> int:
        """Number of feature dimensions."""
        return len(self.offset)

    @property
    def gram(self) -> Tensor:
        """G[d, s, s'] = mean F(s) F(s') of dimension d, shape (dims, steps, steps), float32; rows as in `steps`.

        Errors worked out from it lose digits where the feature moves little; `error` does not go this way.
        """
        mixed = self.cross.unsqueeze(1) + self.cross.unsqueeze(2)
        return self.centred + mixed + self.offset.view(-1, 1, 1)

    def error(self, weights: Sequence[float] | Tensor, anchors: Sequence[int], target: int) -> Tensor:
        """Mean squared error of the forecast sum_j weights[j] F(anchors[j]) of F(target).

        Args:
            weights: one per anchor, or one per anchor and dimension, shape (anchors, dims).
            anchors: steps.
            target: a step.

        Returns:
            Shape (dims,), float64, in squared units of the feature.

        Raises:
            ValueError: a step without moments, or another number of weights than anchors.
        """
        w = torch.as_tensor(weights, dtype=torch.float64)
        if w.shape[:1] != (len(anchors),) or w.shape[1:] not in ((), (self.dims,)):
            raise ValueError(
                f"{len(anchors)} anchors and {self.dims} dimensions need weights of shape ({len(anchors)},) or "
                f"({len(anchors)}, {self.dims}), got {tuple(w.shape)}"
            )
        rows = self.rows([target, *anchors])
        v = torch.cat([torch.ones_like(w[:1]), -w]) if len(anchors) else w.new_ones(1)
        v = v.view(len(rows), -1).expand(-1, self.dims).T.unsqueeze(2)  # (dims, steps, 1)
        # F = C + m, so sum_s v_s F(s) = sum_s v_s C(s) + m sum_s v_s, and the last sum is 0 if the weights sum to 1.
        total = v.sum(1).squeeze(1)
        moving = (v.mT @ self.centred[:, rows][:, :, rows].double() @ v).flatten()
        mixed = (self.cross[:, rows].double() * v.squeeze(2)).sum(1)
        return (moving + total * (2 * mixed + total * self.offset.double())).clamp_min(0)

    def power(self, steps: Sequence[int] | None = None) -> Tensor:
        """Mean square of the feature over `steps` (default: all), shape (dims,), float64: what errors compare with.

        Raises:
            ValueError: a step without moments, or no step.
        """
        rows = self.rows(self.steps if steps is None else steps)
        if not rows:
            raise ValueError("the power of a feature needs at least one step")
        moving = self.centred.diagonal(dim1=1, dim2=2)[:, rows].double()
        return (moving + 2 * self.cross[:, rows].double()).mean(1) + self.offset.double()

    def rows(self, steps: Sequence[int]) -> list[int]:
        """Where the moments of these steps lie. Raises ValueError for a step without moments."""
        if missing := sorted(set(steps) - set(self.steps)):
            raise ValueError(f"no moments of steps {missing}: recorded were {self.steps[0]} to {self.steps[-1]}")
        places = {step: row for row, step in enumerate(self.steps)}
        return [places[step] for step in steps]


def subset(tensor: Tensor, tokens: int) -> Tensor:
    """A copy of at most `tokens` evenly spaced tokens of each sample, shape (samples, tokens, dims).

    Args:
        tensor: a feature; dims lie where `diffaccel.feature.dims_axis` says, the batch comes first.
        tokens: at least 1.
    """
    if dims_axis(tensor) < tensor.ndim - 1:
        flat = tensor.flatten(2)
        return flat.index_select(2, _places(flat.shape[2], tokens, flat.device)).mT
    flat = tensor.view(1, 1, -1) if tensor.ndim == 1 else tensor.unsqueeze(1) if tensor.ndim == 2 else tensor
    return flat.index_select(1, _places(flat.shape[1], tokens, flat.device))


@lru_cache(maxsize=256)
def _places(length: int, tokens: int, device: torch.device) -> Tensor:
    """Evenly spaced places, first and last among them, so that rows of pictures are met at changing columns."""
    kept = min(length, tokens)
    if kept == 1:
        return torch.tensor([length // 2], device=device)
    return torch.arange(kept, device=device) * (length - 1) // (kept - 1)


def _kept(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32)
