"""What a pipeline gives its network, and how it combines the branches of guidance, found without running the network.

Dot is trained outside of the pipeline's loop, on the inputs the loop would give: embedded prompts, ids of positions,
all that differs from class to class. So the pipeline itself is called, up to its first `scheduler.step`, with a network
that returns noise: what it was given is what is wanted, and what the scheduler gets, against the noise returned, shows
the weights of guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffaccel.calls import Arguments
from diffaccel.denoisers import denoisers
from diffaccel.morse.pairs import rows_of
from diffaccel.patch import Patch
from diffaccel.structure import unwrapped
from diffaccel.watch import entry

_WORST = 1e-3  # relative error up to which guidance is a weighted sum of its branches


class _ReachedError(BaseException):
    """The first step of the scheduler; no library on the way catches it."""


@dataclass(frozen=True)
class Call:
    """One call of a network, taken apart.

    Attributes:
        sample: the sample it is given [B, ...], one batch or those of several branches one after another.
        time: its timestep, a number or a tensor.
        conditioning: all other arguments by name.
        names: the parameters of sample and time.
    """

    sample: Tensor
    time: Any
    conditioning: dict[str, Any]
    names: tuple[str, str]

    def __call__(self, network: nn.Module, sample: Tensor, time: Tensor) -> Tensor:
        """What the network returns for another sample and time, conditioned as this call is."""
        given = {self.names[0]: sample, self.names[1]: time, **self.conditioning}
        output: Tensor = network(**given, return_dict=False)[0]
        return output


@dataclass(frozen=True)
class Probe:
    """What the first step of a run is made of.

    Attributes:
        calls: of the network, in order.
        weights: the scheduler is given the sum of outputs with these weights, one for each branch: the batches within
            each call, call by call.
        size: pictures, that is samples of one branch.
        time_scale: the network's time over sigma, for flow matching; 1 for others.
    """

    calls: list[Call]
    weights: Tensor
    size: int
    time_scale: float

    def branches(self, call: Call) -> int:
        """How many batches of pictures, one a branch of guidance, a call holds."""
        return len(call.sample) // self.size

    def combined(self, outputs: list[Tensor]) -> Tensor:
        """The guided estimate [B, ...] of the outputs of all calls."""
        parts = [part for output in outputs for part in output.split(self.size)]
        total = torch.zeros_like(parts[0])
        for part, weight in zip(parts, self.weights.tolist(), strict=True):
            total.add_(part, alpha=weight)
        return total


def only_network(pipe: Any) -> nn.Module:
    """The one network a pipeline calls at every step. Raises ValueError if it has none, or several."""
    found = denoisers(pipe)
    if len(found) != 1 or getattr(pipe, "scheduler", None) is None:
        held = ", ".join(found) or "none"
        raise ValueError(f"Morse is for pipelines with one denoiser and a scheduler, {type(pipe).__name__} has {held}")
    return next(iter(found.values()))


def probe(pipe: Any, **call: Any) -> Probe:
    """Call a pipeline up to the first step of its scheduler, without running its network, and leave it as it was.

    Args:
        pipe: a diffusers pipeline with one denoiser.
        call: arguments of its call.

    Raises:
        ValueError: a pipeline with several denoisers, or one that combines the branches of guidance by something else
            than a weighted sum.
    """
    network, calls, fakes, given = only_network(pipe), list[Call](), list[Tensor](), list[Tensor]()
    arguments = Arguments(network)

    def forward(real: Callable[..., Any]) -> Callable[..., Any]:
        def fake(*args: Any, **kwargs: Any) -> _Output:
            calls.append(taken_apart(arguments, args, kwargs))
            fakes.append(_noise(unwrapped(network), calls[-1].sample, seed=len(calls)))
            return _Output((fakes[-1],))

        return fake

    def step(real: Callable[..., Any]) -> Callable[..., Any]:
        def stop(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> None:
            given.extend((model_output, sample))
            raise _ReachedError

        return stop

    patches = [Patch(network, entry(network), forward), Patch(pipe.scheduler, "step", step)]
    try:
        pipe(**call)
    except _ReachedError:
        pass
    finally:
        for patch in patches:
            patch.remove()
    if not given or not calls:
        raise ValueError(f"{type(pipe).__name__} makes no step with these arguments: {', '.join(call)}")
    size = _pictures(given[1])
    weights = _weights(type(pipe).__name__, [part for fake in fakes for part in fake.split(size)], given[0][:size])
    return Probe(calls, weights, size, _time_scale(pipe.scheduler, calls[0].time))


def taken_apart(arguments: Arguments, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """A call of a network as sample, time and all else.

    Raises:
        ValueError: the sample is no tensor.
    """
    given = {**dict(zip(arguments.names, args, strict=False)), **kwargs}
    assert arguments.time is not None
    names = (arguments.names[0], arguments.time)
    sample, time = given.pop(names[0], None), given.pop(names[1], None)
    given.pop("return_dict", None)
    if not isinstance(sample, Tensor):
        raise ValueError(f"Morse is for networks whose sample is one tensor, this one is {type(sample).__name__}")
    return Call(sample, time, given, names)


def of_branch(call: Call, branch: int, size: int) -> Call:
    """The part of a call that belongs to one branch, where it holds several one after another."""
    rows = slice(branch * size, (branch + 1) * size)
    conditioning = rows_of(call.conditioning, len(call.sample), lambda parts: parts[0][rows])
    return replace(call, sample=call.sample[rows], conditioning=conditioning)


class _Output(tuple[Tensor]):
    """An output that pipelines may take apart either way."""

    @property
    def sample(self) -> Tensor:
        return self[0]


def _noise(network: nn.Module, sample: Tensor, seed: int) -> Tensor:
    """Noise in the shape of what the network returns: its channels may be others than the sample's."""
    config: Mapping[str, Any] = getattr(network, "config", {})
    channels = config.get("out_channels") or sample.shape[1 if sample.ndim > 3 else -1]
    shape = list(sample.shape)
    shape[1 if sample.ndim > 3 else -1] = channels
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(sample)


def _pictures(sample: Tensor) -> int:
    """Pictures in the scheduler's sample, which some pipelines keep twice, once for each branch."""
    half = len(sample) // 2
    return half if half and len(sample) == 2 * half and torch.equal(sample[:half], sample[half:]) else len(sample)


def _weights(pipeline: str, outputs: list[Tensor], guided: Tensor) -> Tensor:
    """The weights with which outputs add up to what the scheduler was given."""
    channel = 1 if guided.ndim > 3 else -1
    columns = [output.narrow(channel, 0, guided.shape[channel]).double().flatten().cpu() for output in outputs]
    table, wanted = torch.stack(columns, 1), guided.double().flatten().cpu()
    weights = torch.linalg.lstsq(table, wanted[:, None]).solution[:, 0]
    if (table @ weights - wanted).norm() > _WORST * wanted.norm():
        raise ValueError(
            f"{pipeline} does not combine the branches of guidance by a weighted sum: call it without "
            "guidance_rescale, skipped layers and the like"
        )
    found: Tensor = weights.float()
    return found


def _time_scale(scheduler: Any, time: Any) -> float:
    """The network's time over sigma, of a scheduler of flow matching."""
    from diffaccel.morse.coordinates import is_flow

    if not is_flow(scheduler):
        return 1.0
    value = float(time.float().mean()) if isinstance(time, Tensor) else float(time)
    return value / float(scheduler.sigmas[int(getattr(scheduler, "begin_index", None) or 0)])
