"""Runs of a pipeline from which a method learns: over observations for policies, over prompts for pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffaccel.pipelines.source import call_defaults


@dataclass(frozen=True)
class Run:
    """A run that is not yet made.

    Attributes:
        samples: in it.
        make: makes it.
    """

    samples: int
    make: Callable[[], Any]


def runs(
    pipe: Any, source: Any, batch: int = 1, seed: int = 0, steps: int | None = None, **arguments: Any
) -> list[Run]:
    """The runs to learn from.

    Args:
        pipe: a policy, or a pipeline that draws pictures from prompts or classes.
        source: observations, shape (n, n_obs_steps, observation_dim), or one of them; for policies of other projects
            what their own method is called with that decides what to do, such as `select_action` (a tuple if with
            several arguments), or a list of that; for pictures prompts.
        batch: most samples a run, where samples can be put together.
        seed: of the first sample's noise, others follow.
        steps: of each run; the pipeline's default if None. Policies of other projects make their own.
        **arguments: further arguments of `diffaccel.pipelines.image.pictures`.

    Raises:
        ValueError: nothing to learn from, or what a call of the pipeline refuses.
    """
    from diffaccel.pipelines.policies.foreign import recognised
    from diffaccel.pipelines.policy import PolicyPipeline

    if isinstance(pipe, PolicyPipeline):
        made = list(_of_policy(pipe, source, batch, seed, steps))
    elif recognised(pipe):
        made = list(_of_foreign(pipe, source, seed))
    else:
        made = list(_of_pictures(pipe, source, batch, seed, steps, arguments))
    if not made:
        raise ValueError("calibration is empty: give at least one observation, or one prompt for pictures")
    return made


def default_steps(pipe: Any) -> int | None:
    """Denoising steps of a call that does not say how many; None if that cannot be told."""
    from diffaccel.pipelines.image import denoising_steps
    from diffaccel.pipelines.policies.foreign import recognised
    from diffaccel.pipelines.policy import PolicyPipeline

    if isinstance(pipe, PolicyPipeline):
        return pipe.default_steps
    return (
        None if recognised(pipe) else denoising_steps(type(pipe), call_defaults(str(getattr(pipe, "name_or_path", ""))))
    )


def _of_policy(pipe: Any, source: Any, batch: int, seed: int, steps: int | None) -> Iterator[Run]:
    given = stacked(source)
    for start in range(0, len(given), batch):
        part = given[start : start + batch]
        pipe.conditioning(part)  # for its errors, before any run

        def make(part: Tensor = part, start: int = start) -> Any:
            generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
            return pipe(part, steps, generator=generators)

        yield Run(len(part), make)


def stacked(source: Any) -> Tensor:
    """Observations of a policy as one tensor (n, n_obs_steps, observation_dim): given as such, one, or a list of them.

    Raises:
        ValueError: prompts, or tensors of different shapes.
    """
    if isinstance(source, str) or (isinstance(source, Sequence) and any(isinstance(one, str) for one in source)):
        raise ValueError("a policy learns from observations, shape (n, n_obs_steps, observation_dim), not from prompts")
    parts = [torch.as_tensor(one) for one in source] if isinstance(source, Sequence) else [torch.as_tensor(source)]
    given = [part[None] if part.ndim == 2 else part for part in parts]
    if len({part.shape[1:] for part in given}) > 1:
        raise ValueError(f"observations must be of one shape, got {', '.join(str(tuple(p.shape)) for p in parts)}")
    return torch.cat(given) if given else torch.empty(0)


def _of_foreign(policy: Any, source: Any, seed: int) -> Iterator[Run]:
    from diffaccel.pipelines.policies.foreign import ask

    for i, one in enumerate(source if isinstance(source, list) else [source]):

        def make(one: Any = one, i: int = i) -> Any:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(seed + i)
                return ask(policy, *one) if isinstance(one, tuple) else ask(policy, one)

        yield Run(1, make)


def _of_pictures(
    pipe: Any, source: Any, batch: int, seed: int, steps: int | None, arguments: dict[str, Any]
) -> Iterator[Run]:
    from diffaccel.pipelines import image

    prompts = [source] if isinstance(source, str) else list(source)
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]

        def make(part: list[str] = part, start: int = start) -> Any:
            return image.pictures(pipe, part, [seed + start + i for i in range(len(part))], steps, **arguments)

        yield Run(len(part), make)
