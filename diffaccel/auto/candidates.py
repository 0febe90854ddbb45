"""The candidates of a search, and what moments of full runs say of each before it is run.

The forecast of a candidate adds up the squared errors of its skipped steps, each times what the sampler makes of it.
That ignores how errors feed back on later features, so it is right up to a number of dB (`diffaccel.auto.search`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Any

import torch
from torch import Tensor, nn

from diffaccel.auto.search import Row
from diffaccel.calibration import Calibration
from diffaccel.dimensions import ByDimension
from diffaccel.methods import Method, of_network, resolve
from diffaccel.methods.fitted import Fitted
from diffaccel.methods.spelling import parse_method
from diffaccel.moments import Moments
from diffaccel.plan import Plan
from diffaccel.sites import LEVELS, levels, sites
from diffaccel.tuning import CHOICES

LEARNT = ("model", "deep")
"""Levels of few sites, at which runs are recorded and weights fitted; others are forecast as if at "model"."""
ORDERS = (0, 1, 2)
WARMUPS = (1, 3)


def levels_of(networks: Mapping[str, nn.Module]) -> list[str]:
    """The levels all networks have, but for "block", at which one plan for all sites computes what "model" does."""
    found = [levels(network) for network in networks.values()]
    return [level for level in LEVELS if level != "block" and all(level in one for one in found)]


def method_of(name: str, calibrations: Mapping[str, Calibration]) -> Method:
    """The method of a row; one that needs a calibration gets that of its level."""
    word, options = parse_method(name)
    method = resolve(word, "", options)
    return replace(method, calibration=calibrations[method.level]) if isinstance(method, Fitted) else method


def rows(
    networks: Mapping[str, nn.Module], levels: Sequence[str], calibrations: Mapping[str, Calibration], steps: int
) -> list[Row]:
    """All candidates for runs of `steps` steps, forecast."""
    result: dict[str, Row] = {}
    for level in levels:
        learnt = level if level in calibrations else next(iter(calibrations))
        scene = Scene.of(networks, calibrations[learnt], learnt, steps)
        plans: set[tuple[Plan, int]] = set()
        for name, family in (*_fitted(level, steps, level in calibrations), *_taylorseer(level, steps)):
            method = method_of(name, calibrations)
            plan = method.plan([], steps)
            count = len(plan.computed())
            if count == steps or (family.startswith("taylorseer") and (plan, method.order) in plans):
                continue
            plans.add((plan, method.order))
            forecast = scene.forecast(method, plan)
            result[name] = Row(name, f"{family}, {level}", level, count, steps, forecast)
    return list(result.values())


def _fitted(level: str, steps: int, learnt: bool) -> Iterator[tuple[str, str]]:
    """Fitted at every number of computed steps, with every choice of anchors and feedback: name and family."""
    where = "" if level == "model" else f",level={level}"
    # Feedback is for features that become the network's output, see diffaccel.methods.fitted.
    choices = [choice for choice in CHOICES if level == "model" or not choice[1]] if learnt else []
    for anchors, feedback in choices:
        for computed in range(2, steps):
            name = f"fitted:computed={computed},anchors={anchors},feedback={feedback:g}{where}"
            yield name, f"fitted {anchors} {feedback:g}"


def _taylorseer(level: str, steps: int) -> Iterator[tuple[str, str]]:
    """TaylorSeer, the last step computed, at all intervals; orders above 0 need the anchors of a warm-up or wait."""
    where = "" if level == "model" else f",level={level}"
    for order in ORDERS:
        for warmup in WARMUPS:
            for interval in range(2, max(3, steps // 2)):
                name = f"taylorseer:interval={interval},order={order},warmup={warmup},last=true{where}"
                yield name, f"taylorseer {order}"


@dataclass(frozen=True)
class Part:
    """One feature of a network: its second moments over steps, summed over dimensions, and what its errors do.

    Attributes:
        gram: mean over dimensions, shape (rows, rows).
        scale: of one unit of error in the latent, shape (rows,).
        steps: the steps that rows stand for.
        leaf: see `diffaccel.moments.Moments`.
        site: index of the site in its network.
    """

    gram: Tensor
    scale: Tensor
    steps: tuple[int, ...]
    leaf: int
    site: int

    @classmethod
    def of(cls, moments: Moments, response: Sequence[float], site: int) -> Part:
        power = moments.centred.diagonal(dim1=1, dim2=2).double() + 2 * moments.cross.double()
        spread = (power.mean(0) + moments.offset.double().mean()).clamp_min(1e-24).sqrt()
        wanted = torch.tensor([response[s] for s in moments.steps], dtype=torch.float64)
        return cls(moments.centred.double().mean(0), wanted / spread, moments.steps, moments.leaf, site)

    def left(self, forecaster: Any, plan: Plan) -> float:
        """What the skipped steps add to the squared error of the latent, were they independent."""
        computed = [row for row, s in enumerate(self.steps) if row == 0 or plan.computes(0, s)]
        skipped = sorted(set(range(len(self.steps))) - set(computed))
        errors = torch.zeros(len(skipped), len(self.steps), dtype=torch.float64)
        for error, row in zip(errors, skipped, strict=True):
            anchors = [a for a in computed if a < row][::-1][: forecaster.order + 1]
            times = [float(self.steps[a]) for a in anchors]
            error[row] = 1
            error[anchors] -= torch.tensor(
                self._weights(forecaster, times, float(self.steps[row])), dtype=torch.float64
            )
        squared = ((errors @ self.gram) * errors).sum(1).clamp_min(0)
        return float((self.scale[skipped] ** 2 * squared).sum())

    def _weights(self, forecaster: Any, times: list[float], time: float) -> list[float]:
        if not isinstance(forecaster, ByDimension):
            return [float(w) for w in forecaster.weights(times, time)]
        row: list[float] = forecaster.rule.weights(times, time)[int(forecaster.labels[self.leaf][0])]
        return row


@dataclass(frozen=True)
class Scene:
    """What is known of all networks of a pipeline at one level: features by network, and their sites."""

    parts: Mapping[str, list[Part]]
    sites: Mapping[str, list[Any]]
    steps: int

    @classmethod
    def of(cls, networks: Mapping[str, nn.Module], calibration: Calibration, level: str, steps: int) -> Scene:
        found = {name: sites(network, level) for name, network in networks.items()}
        response = calibration.responses(steps)
        parts = {
            name: [
                Part.of(moments, response, i)
                for i, site in enumerate(of)
                for moments in calibration.moments(name, site.name, steps)
            ]
            for name, of in found.items()
        }
        return cls(parts, found, steps)

    def forecast(self, method: Method, plan: Plan) -> float:
        """The forecast of a row in dB."""
        total = 0.0
        for name, parts in self.parts.items():
            own = of_network(method, name)
            forecasters = [own.forecaster(site, self.steps) for site in self.sites[name]]
            total += sum(part.left(forecasters[part.site], plan) for part in parts)
        return -10 * log10(max(total, 1e-30))
