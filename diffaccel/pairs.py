"""Outputs and samples in pairs, of which outputs are forecast, and the networks for which that can be done."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from diffaccel.clock import Clock, Moment
from diffaccel.compiled import is_compiled
from diffaccel.denoisers import denoisers
from diffaccel.feature import Feature
from diffaccel.innovation import Regression, regression
from diffaccel.methods import Method
from diffaccel.methods.innovation import Innovation
from diffaccel.pipelines.policies import foreign
from diffaccel.session import Key, Session
from diffaccel.sites import OUTPUT, Site, called_more, sites
from diffaccel.structure import unwrapped


class PairSession(Session):
    """The state of one network accelerated by an `Innovation`. Anchors are pairs of output and sample.

    Raises:
        ValueError: as `Session`, or the network is compiled as a whole, or has more than one output.
    """

    def __init__(self, network: nn.Module, method: Method, clock: Clock) -> None:
        self.innovation = cast(Innovation, method)
        self._sample = torch.empty(0)
        self._regressions: dict[tuple[tuple[int, ...], int], Regression] = {}
        super().__init__(network, method, clock)

    def find(self) -> list[Site]:
        """The one output."""
        check_single_output(self.network)
        return super().find()

    def enter(self, moment: Moment, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the network begins: note the sample."""
        super().enter(moment, args, kwargs)
        self._sample = sample_of(self.network, self._arguments.names[0], args, kwargs)

    def forget(self) -> None:
        """Drop all anchors, and the sample."""
        super().forget()
        self._sample = torch.empty(0)

    def _keep(self, key: Key, step: int, feature: Feature) -> None:
        check_shapes(self.network, feature.leaves[0], self._sample)
        super()._keep(key, step, Feature((feature.leaves[0], self._sample.clone())))  # some loops write into theirs

    def _forecast(self, key: Key, step: int) -> Tensor:
        """What the network would return at `step`."""
        i, branch, _ = key
        if key not in self._anchors:
            raise called_more(self.network, self.sites[i], OUTPUT)
        anchors = self._anchors[key]
        times = tuple(time for time, _ in anchors)
        if (times, step) not in self._regressions:
            statistics = self.innovation.statistics
            assert statistics is not None
            self._regressions[times, step] = regression(statistics.gram, times, step, self.innovation.ridge)
        w = self._regressions[times, step]
        self._skipped[i, branch] += 1
        wide = torch.promote_types(self._sample.dtype, torch.float32)
        total = self._sample.to(wide) * w.now
        for (_, pair), output, sample in zip(anchors, w.outputs, w.samples, strict=True):
            total.add_(pair.leaves[0], alpha=output).add_(pair.leaves[1], alpha=sample)
        return total.to(anchors[0][1].leaves[0].dtype)


def only_denoiser(pipe: Any) -> tuple[str, nn.Module]:
    """Name and network of a pipeline with one denoiser.

    Raises:
        ValueError: it has two, or is a policy of another project.
    """
    if foreign.recognised(pipe):
        raise ValueError(
            f"Innovation needs to know what the scheduler of {type(pipe).__name__} makes of an output, and that runs "
            "a loop of its own: put network, scheduler and normalizer into a PolicyPipeline, or use method='bac'"
        )
    found = denoisers(pipe)
    if len(found) != 1:
        raise ValueError(
            f"method='innovation' is for pipelines with one denoiser, {type(pipe).__name__} has {', '.join(found)}: "
            "use method='fitted'"
        )
    return next(iter(found.items()))


def check_single_output(network: nn.Module) -> None:
    """Raise ValueError if a network is compiled as a whole, or has no output that can be told, or more than one."""
    kind = type(unwrapped(network)).__name__
    if is_compiled(network):
        raise ValueError(f"this {kind} is compiled as a whole: accelerate it uncompiled, or use method='taylorseer'")
    try:
        found = len(sites(network, OUTPUT))
    except ValueError as error:
        raise ValueError(f"{error}; method='innovation' forecasts outputs only, use method='fitted'") from error
    if found > 1:
        raise ValueError(
            f"{kind} has {found} outputs, method='innovation' is for networks with one: use method='fitted'"
        )


def check_shapes(network: nn.Module, output: Tensor, sample: Tensor) -> None:
    """Raise ValueError if a network's output has another shape than its sample."""
    if output.shape != sample.shape:
        raise ValueError(
            f"{type(unwrapped(network)).__name__} returns {tuple(output.shape)} for a sample of {tuple(sample.shape)}: "
            "method='innovation' is for networks whose output has the shape of their sample; use method='fitted'"
        )


def sample_of(network: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The sample a network is asked about: its first argument, by this name. Raises ValueError if it is no tensor."""
    found = args[0] if args else kwargs.get(name)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"{type(unwrapped(network)).__name__} takes its sample as {type(found).__name__}: method='innovation' is "
            "for networks that take it as one tensor; use method='fitted'"
        )
    return found
