"""Where the pairs come from that Dot learns from.

`Drawn` follows Algorithm 1 of the paper: data with noise, one Dash step, one jump. `Rolled` is not in the paper: it
runs the pipeline itself, with Dot as it is so far, and asks Dash at every Dot step what it would have said. So Dot is
trained where it will be asked: on the gaps of the plans, at samples that several of its own steps have led to, and
under any scheduler, whatever this keeps of the steps before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffaccel.morse.budget import dash_index
from diffaccel.morse.clean import clean_samples
from diffaccel.morse.coordinates import FLOW, SAMPLE, Coordinates
from diffaccel.morse.pairs import Pair, join, take
from diffaccel.morse.probe import Call, Probe, of_branch, only_network, probe
from diffaccel.pipelines.image import guidance_arguments
from diffaccel.pipelines.source import call_defaults

Plans = Sequence[tuple[int, int]]  # (Dash steps, Dot steps)
_GRID = 100  # steps of the run whose times uniform pairs of flow matching are drawn from


class Calls:
    """The arguments of a pipeline's call for a batch of a dataset.

    Args:
        pipe: a diffusers pipeline with one denoiser.
        constant: arguments of every call, before the pipeline's own `call_defaults.json`.
        guidance: scales are drawn evenly from this range; None leaves the scale to the pipeline.
    """

    def __init__(self, pipe: Any, constant: Mapping[str, Any], guidance: tuple[float, float] | None) -> None:
        self.pipe, self.guidance = pipe, guidance
        network: Any = only_network(pipe)
        self.config: Mapping[str, Any] = network.config
        self.constant = call_defaults(str(pipe.name_or_path)) | dict(constant)
        if guidance is not None:
            guidance_arguments(type(pipe), self.config, guidance[0])  # for its error

    def of(self, batch: Mapping[str, Any], generator: torch.Generator, **more: Any) -> dict[str, Any]:
        """Arguments for a collated batch; what is no picture in it goes to the pipeline as it is."""
        asked = {name: value for name, value in batch.items() if name not in ("pixel_values", "latents")}
        given = {name: _as_asked(value) for name, value in asked.items()}
        size = len(next(iter(batch.values())))
        arguments = self.constant | {"generator": generator} | more
        if self.guidance is not None:
            low, high = self.guidance
            scale = low + (high - low) * float(torch.rand((), generator=generator))
            arguments |= guidance_arguments(type(self.pipe), self.config, scale)
        if isinstance(arguments.get("negative_prompt"), str):
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * size
        return arguments | (given or {"batch_size": size})


class Drawn:
    """Pairs by Algorithm 1, at times drawn from all there are (`uniform`, the paper), or from those of plans.

    Args:
        calls: of the pipeline.
        coordinates: of its scheduler and of the Dot.
        guided: whether Dot corrects the guided estimate, once, instead of that of each branch.
        plans: whose gaps times are drawn from; None draws any two.
    """

    def __init__(self, calls: Calls, coordinates: Coordinates, guided: bool, plans: Plans | None) -> None:
        self.calls, self.coordinates, self.guided, self.plans = calls, coordinates, guided, plans
        self.network: nn.Module = only_network(calls.pipe)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[Pair]:
        """One batch of pairs for each batch of data, in a list of one."""
        steps = self._plan(generator) if self.plans else (_GRID, 0)
        probed = probe(self.calls.pipe, **self.calls.of(batch, generator, num_inference_steps=sum(steps)))
        t_s, t_o = self._times(steps, probed, generator)
        x = clean_samples(self.calls.pipe, batch)
        t_s, t_o = t_s.to(x.device), t_o.to(x.device)
        # x_ts = alpha x + sigma eps
        x_s = self._noised(x, _noise(x, generator), t_s / probed.time_scale)
        z_s = self._dash(probed, x_s, t_s)
        # x_to = phi(x_ts, z_ts, t_s, t_o), one jump of the sampler
        k_s = self._kept(probed.combined(z_s), x_s, t_s)
        fresh = _noise(x, generator) if self.coordinates.kept == SAMPLE else None
        x_o = self.coordinates.jump(k_s, x_s, t_s / probed.time_scale, t_o / probed.time_scale, fresh)
        z_o = self._dash(probed, x_o, t_o)
        guided = Pair(x_o, t_o, x_s, k_s, t_s, k_s, self._kept(probed.combined(z_o), x_o, t_o), {})
        if self.guided:
            return [replace(guided, conditioning=_of_prompt(probed))]
        by_call = zip(probed.calls, z_s, z_o, strict=True)
        return [join([self._of_call(*parts, guided, probed.size) for parts in by_call])]

    def _of_call(self, call: Call, z_s: Tensor, z_o: Tensor, pair: Pair, size: int) -> Pair:
        """Pairs of all branches in a call, from that of the guided estimate."""
        count = len(call.sample) // size
        wide = replace(join([pair] * count), conditioning=call.conditioning)
        k_s, k = self._kept(z_s, wide.x_s, wide.t_s), self._kept(z_o, wide.x, wide.t)
        return replace(wide, k_s=k_s, base=k_s, k=k)

    def _noised(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Data [B, ...] with the noise of times [B]; in flow matching these are sigmas."""
        if self.coordinates.kept == FLOW:
            return torch.lerp(x, noise, t.to(x).view(-1, *[1] * (x.ndim - 1)))
        alpha, sigma = self.coordinates.alpha_sigma(t, x)
        return (alpha * x + sigma * noise).to(x.dtype)

    def _kept(self, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.coordinates.keep(z, x, t)

    def _dash(self, probed: Probe, x: Tensor, t: Tensor) -> list[Tensor]:
        """What Dash says at a sample [B, ...] and times [B], call by call; variances it may add are left out."""
        channel = 1 if x.ndim > 3 else -1
        outputs = []
        for call in probed.calls:
            count = len(call.sample) // probed.size
            output = call(self.network, torch.cat([x] * count), torch.cat([t] * count))
            outputs.append(output.narrow(channel, 0, x.shape[channel]))
        return outputs

    def _plan(self, generator: torch.Generator) -> tuple[int, int]:
        assert self.plans
        return self.plans[int(torch.randint(len(self.plans), (), generator=generator))]

    def _times(self, steps: tuple[int, int], probed: Probe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times of Dash and of Dot [B] each, in the network's unit."""
        if self.plans is None:
            # t_s, t_o uniform with t_s > t_o
            grid = self._all_times(probed)
            drawn = torch.rand(probed.size, len(grid), generator=generator).topk(2).indices.sort(1).values
            return grid[drawn[:, 0]], grid[drawn[:, 1]]
        grid, dash = self._times_of_run(probed), torch.tensor(dash_index(*steps))
        dots = torch.tensor([i for i in range(sum(steps)) if i not in dash.tolist()])
        arrived = dots[torch.randint(len(dots), (probed.size,), generator=generator)]
        return grid[dash[torch.searchsorted(dash, arrived) - 1]], grid[arrived]

    def _all_times(self, probed: Probe) -> Tensor:
        """All times, falling: the training steps of the schedule, or its sigmas for flow matching."""
        if self.coordinates.kept == FLOW:
            return self._times_of_run(probed)
        count = int(self.calls.pipe.scheduler.config.num_train_timesteps)
        return torch.arange(count - 1, -1, -1)

    def _times_of_run(self, probed: Probe) -> Tensor:
        """The times of the run that was probed."""
        scheduler = self.calls.pipe.scheduler
        flow = self.coordinates.kept == FLOW
        times: Tensor = scheduler.sigmas[:-1] * probed.time_scale if flow else scheduler.timesteps
        return times.detach().cpu()


class Rolled:
    """Pairs on the way of the pipeline's own runs, accelerated by the Dot that is being trained.

    Args:
        calls: of the pipeline.
        dot: the Dot.
        plans: one is drawn for each run.
    """

    def __init__(self, calls: Calls, dot: Any, plans: Plans) -> None:
        self.calls, self.dot, self.plans = calls, dot, plans

    def __call__(self, batch: Mapping[str, Any], generator: torch.Generator) -> list[Pair]:
        """One batch of pairs for each Dot step of the run; they are mixed, so that each is of all steps."""
        from diffaccel.acceleration import accelerate_pipeline
        from diffaccel.methods.morse import Morse

        k_dash, k_dot = self.plans[int(torch.randint(len(self.plans), (), generator=generator))]
        more: dict[str, Any] = {"num_inference_steps": k_dash + k_dot}
        more["output_type"] = "latent" if getattr(self.calls.pipe, "vae", None) is not None else "np"
        arguments, found = self.calls.of(batch, generator, **more), list[Pair]()
        guided = self._scale(arguments) if self.dot.config.guided else None
        method = Morse(self.dot, dots_per_dash=k_dot / k_dash, ratio=1.0, guided=guided)
        with accelerate_pipeline(self.calls.pipe, method).acceleration as acceleration:
            acceleration.session().teacher = found.append
            self.calls.pipe(**arguments)
        every = join(found)
        order = torch.randperm(len(every.x), generator=generator)
        return [take(every, rows.to(every.x.device)) for rows in order.chunk(k_dot)]

    def _scale(self, arguments: Mapping[str, Any]) -> float:
        return float(probe(self.calls.pipe, **arguments).weights.max())


def _of_prompt(probed: Probe) -> dict[str, Any]:
    """Conditioning of the second of two branches in a batch, that of the prompt.

    Raises:
        ValueError: the branches lie in another way.
    """
    if len(probed.calls) != 1 or len(probed.weights) != 2 or probed.weights[1] < probed.weights[0]:
        raise ValueError(
            "a guided Dot is for pipelines that run both branches of guidance as halves of one batch, the one without "
            "prompt first, and with guidance on: take a Dot that was not made with guided=True"
        )
    return of_branch(probed.calls[0], 1, probed.size).conditioning


def _as_asked(value: Any) -> Any:
    """Prompts and numbers of classes as lists, embeddings as they are."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.tolist()
    return list(value)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)
