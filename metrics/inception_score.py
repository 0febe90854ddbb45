"""Inception score: are single pictures clear, and all of them diverse, in the eyes of a classifier?"""

from __future__ import annotations

from math import log

import torch
from torch import Tensor


def inception_score(logits: Tensor, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """`exp(mean KL(p(y|x) || p(y)))` in shuffled splits (Salimans et al. 2016), computed in float64.

    The splits are as equal as can be, as in torch-fidelity. torchmetrics' `InceptionScore` makes the same of the same
    seed where `splits` divides n; elsewhere its last split is a small rest, which pulls the mean down. The score grows
    with the size of a split, so it compares only at one n and one number of splits.

    Args:
        logits: shape (n, classes), of the FID Inception without its bias for published numbers.
        splits: number of splits.
        seed: of the shuffling, which leaves torch's own random state alone.

    Returns:
        Mean and standard deviation over the splits; the deviation is that of a population, as in the authors' code.

    Raises:
        ValueError: another shape, values that are not finite, or fewer pictures than splits.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape (n, classes) with at least 2 classes, got {tuple(logits.shape)}")
    if splits < 1 or len(logits) < splits:
        raise ValueError(f"each split needs a picture: got {len(logits)} pictures and {splits} splits")
    if not logits.isfinite().all():
        raise ValueError("logits has values that are not finite: look for broken pictures")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits.device)
    scores = torch.stack([_score(part) for part in logits.double()[order].tensor_split(splits)])
    return scores.mean().item(), scores.std(unbiased=False).item()


def _score(logits: Tensor) -> Tensor:
    given = logits.log_softmax(dim=1)  # log p(y|x)
    marginal = given.logsumexp(dim=0) - log(len(logits))  # log p(y)
    return (given.exp() * (given - marginal)).sum(dim=1).mean().exp()
