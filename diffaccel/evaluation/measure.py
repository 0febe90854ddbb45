"""From pictures to numbers: every candidate against the full run, its prompts and the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffaccel.evaluation.subject import Drawn
from diffaccel.evaluation.tools import DISTRIBUTIONS, PAIRS, PROMPTS, Tools
from diffaccel.metrics.bootstrap import Estimate, mean_interval, share_interval, statistic_interval
from diffaccel.metrics.extractor import as_bytes
from diffaccel.metrics.features import Features
from diffaccel.metrics.fid import frechet_distance, gaussian
from diffaccel.metrics.inception_score import inception_score
from diffaccel.metrics.kid import kid
from diffaccel.metrics.parity import identical, psnr, relative_l2
from diffaccel.metrics.precision_recall import covered
from diffaccel.metrics.ssim import ssim
from diffaccel.metrics.statistics import Statistics
from diffaccel.metrics.statistics import of as statistics_of

SHARES = ("exact", "caption")
"""Metrics that are shares of pictures, in percent."""

Chunk = tuple[Drawn, Drawn | None, Sequence[str] | None]
"""Some pictures of a candidate, the full run's of the same seeds, and their prompts; None where there are none."""


@dataclass
class Measured:
    """What was measured of a candidate: a number a picture by metric, and the features of all pictures."""

    values: dict[str, Tensor] = field(default_factory=dict)
    features: Features | None = None


def measure(tools: Tools, chunks: Iterable[Chunk], bar: tqdm[Any] | None = None) -> Measured:
    """Measure one candidate, a chunk at a time, so that only one chunk of pictures is in memory."""
    values: dict[str, list[Tensor]] = {}
    features: list[Features] = []
    for drawn, full, prompts in chunks:
        for name in tools.names:
            if name in PAIRS and full is not None:
                values.setdefault(name, []).append(_of_pair(tools, name, drawn, full))
            elif name in PROMPTS and prompts is not None:
                values.setdefault(name, []).append(_of_prompt(tools, name, drawn.pictures, prompts))
        if tools.extractor is not None:
            features.append(tools.extractor(as_bytes(drawn.pictures)))
        if bar is not None:
            bar.update(len(drawn.pictures))
    joined = {name: torch.cat(parts).double() for name, parts in values.items()}
    return Measured(joined, Features.concatenate(features) if features else None)


def _of_pair(tools: Tools, name: str, drawn: Drawn, full: Drawn) -> Tensor:
    if name == "psnr":
        return psnr(drawn.pictures, full.pictures)
    if name == "ssim":
        return ssim(drawn.pictures, full.pictures)
    if name == "latent":
        return relative_l2(drawn.latents, full.latents)
    if name == "exact":
        return identical(drawn.latents, full.latents).double()
    assert tools.lpips is not None
    return tools.lpips(drawn.pictures, full.pictures)


def _of_prompt(tools: Tools, name: str, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    if name == "clip":
        assert tools.clip is not None
        return tools.clip.scores(pictures, prompts)
    read = tools.checker.read(2 * pictures - 1)
    return torch.tensor([float(one == prompt) for one, prompt in zip(read, prompts, strict=True)])


def picture_estimate(name: str, values: Tensor) -> dict[str, Any]:
    """Mean of a number a picture with its interval, as data.

    Identical pictures, whose PSNR is infinite, are counted and left out of the mean.
    """
    if name in SHARES:
        share = share_interval(values)
        return {"value": 100 * share.value, "low": _times_100(share.low), "high": _times_100(share.high), "n": share.n}
    finite = values[values.isfinite()]
    nothing: dict[str, Any] = {"value": None, "low": None, "high": None}
    found: dict[str, Any] = mean_interval(finite).as_dict() if len(finite) else nothing
    found = {
        **found,
        "n": len(values),
        "values": [value if value < float("inf") else None for value in values.tolist()],
    }
    return {**found, "identical": len(values) - len(finite)} if name == "psnr" else found


def gain(name: str, values: Tensor, other: Tensor) -> dict[str, Any]:
    """Mean of the paired differences of two candidates with its interval, in the metric's unit; identical pictures,
    whose PSNR is infinite, are left out."""
    difference = (values - other) * (100 if name in SHARES else 1)
    finite = difference[difference.isfinite()]
    if not len(finite):
        return {"value": None, "low": None, "high": None, "n": 0}
    return mean_interval(finite).as_dict()


def distributions(tools: Tools, measured: Measured, full: Measured | None) -> dict[str, dict[str, Any]]:
    """The distribution metrics of one candidate as data, against the reference and the full run."""
    features, extractor = measured.features, tools.extractor
    own = None if full is None else full.features
    if features is None or extractor is None:
        return {}
    names = [name for name in tools.names if name in DISTRIBUTIONS]
    given = tools.reference.statistics
    if given is not None:
        reference = given
    elif own is not None:
        reference = statistics_of(own, extractor.identity, keep=len(own.pooled))
    else:
        return {}
    nothing: dict[str, Any] = {
        "value": None,
        "low": None,
        "high": None,
        "n": len(features.pooled),
    }  # to say of the full run to itself
    itself = given is None and own is features
    found = {
        name: dict(nothing) if itself and name != "is" else _distribution(tools, name, features, reference)
        for name in names
    }
    if "fid" in names and given is not None and own is not None:
        found["fid_full"] = dict(nothing) if own is features else _distance_to_full(tools, features, own)
    return found


def _distribution(tools: Tools, name: str, features: Features, reference: Statistics) -> dict[str, Any]:
    pooled, kept = features.pooled, reference.features
    if name == "fid":
        return _distance(tools, pooled, lambda x: frechet_distance(reference.mu, reference.sigma, *gaussian(x)))
    if name == "sfid":
        mu, sigma = reference.spatial_mu, reference.spatial_sigma
        if features.spatial is None or mu is None or sigma is None:
            raise ValueError("--metrics sfid needs spatial features, which this extractor or reference does not have")
        return _distance(tools, features.spatial, lambda x: frechet_distance(mu, sigma, *gaussian(x)))
    if name == "is":
        if features.logits is None:
            raise ValueError("--metrics is needs a classifier, which this extractor is not: leave it out")
        return _estimate(tools, features.logits, lambda x: inception_score(x)[0])
    if kept is None:
        raise ValueError(f"--metrics {name} needs a reference with features: give a folder of pictures")
    if name == "kid":
        return _kernel_distance(tools, pooled, kept)
    hits = covered(pooled, kept) if name == "precision" else covered(kept, pooled)
    return dict(share_interval(hits).as_dict())


def _kernel_distance(tools: Tools, features: Tensor, reference: Tensor) -> dict[str, Any]:
    """KID over 100 subsets; its interval is as wide as that of a single subset of each resampled set, which is cheaper
    and a little too wide."""
    value, n = kid(features, reference)[0], len(features)
    if tools.resamples < 2:
        return Estimate(value, None, None, n).as_dict()
    single = _estimate(tools, features, lambda x: kid(x, reference, subsets=1)[0])
    margin = single["high"] - single["value"]
    return Estimate(value, value - margin, value + margin, n).as_dict()


def _distance_to_full(tools: Tools, features: Features, full: Features) -> dict[str, Any]:
    """Fréchet distance to the full run's pictures; both sets are resampled together, since their seeds are the same."""
    pairs = torch.stack([features.pooled, full.pooled], dim=1)
    return _distance(tools, pairs, lambda x: frechet_distance(*gaussian(x[:, 1]), *gaussian(x[:, 0])))


def _distance(tools: Tools, rows: Tensor, statistic: Callable[[Tensor], float]) -> dict[str, Any]:
    """An estimate of what cannot be negative."""
    found = _estimate(tools, rows, statistic)
    return found if found["low"] is None else {**found, "low": max(0.0, found["low"])}


def _estimate(tools: Tools, rows: Tensor, statistic: Callable[[Tensor], float]) -> dict[str, Any]:
    """A statistic of the rows with its interval, if intervals are asked for."""
    if tools.resamples < 2:
        return Estimate(float(statistic(rows)), None, None, len(rows)).as_dict()
    return dict(statistic_interval(lambda chosen: statistic(rows[chosen]), len(rows), tools.resamples).as_dict())


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value
