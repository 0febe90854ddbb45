"""Policies of other projects, taken as they are: their network, and the methods that run its sampling loop.

Found by structure, so that no other project is needed: lerobot's multi-task DiT and diffusion policies, those of
real-stanford/diffusion_policy, RDT, and what is built like them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from diffaccel.calls import Arguments

ENTRIES = ("predict_action_chunk", "predict_action", "generate_actions", "conditional_sample")
"""Methods that run a sampling loop, from the outside in."""

# Under which names policies keep schedulers of diffusers, that of the sampling first.
_SCHEDULERS = ("noise_scheduler_sample", "noise_scheduler", "scheduler")


def recognised(policy: Any) -> bool:
    """Whether something is a policy with a sampling loop of its own, not a pipeline or a bare network."""
    return isinstance(policy, nn.Module) and bool(entries_of(policy))


def entries_of(policy: nn.Module) -> list[tuple[Any, str]]:
    """The methods that run the sampling loop, with the objects they belong to; empty if there are none.

    They are those of the policy and of its parts: lerobot keeps the loop in `policy.objective`, which is no module, or
    in `policy.diffusion`.
    """
    return [(owner, name) for owner in _parts(policy) for name in ENTRIES if _has(owner, name)]


def network_of(policy: nn.Module) -> tuple[str, nn.Module]:
    """The network a policy calls at every step, with its dotted path.

    It is the outermost module below the policy that takes a timestep.

    Raises:
        TypeError: there is none, or more than one.
    """
    found = list(_networks(policy))
    if len(found) == 1:
        return found[0]
    names = f"more than one network that takes a timestep ({', '.join(name for name, _ in found)})"
    raise TypeError(
        f"{type(policy).__name__} has {names if found else 'no network that takes a timestep'}, so what to accelerate "
        "is not clear: put its network, a scheduler and a normalizer into a PolicyPipeline"
    )


def sampler_of(policy: nn.Module) -> str:
    """The class name of what a policy samples with: a scheduler of diffusers, or an objective of its own."""
    parts = list(_parts(policy))
    schedulers = (vars(part).get(name) for name in _SCHEDULERS for part in parts)
    return type(next((found for found in (*schedulers, *parts[::-1]) if found is not None), policy)).__name__


def ask(policy: nn.Module, *given: Any) -> Any:
    """One query of a policy, whatever it was in the midst of: what it decides.

    A policy that keeps observations and actions in queues is reset before, so that its network runs, and after.

    Args:
        policy: the policy.
        *given: what its `select_action` is called with, or, if it has none, the outermost method that runs the loop.
    """
    if _has(policy, "select_action") and _has(policy, "reset"):
        policy.reset()  # type: ignore[operator]
        try:
            return policy.select_action(*given)  # type: ignore[operator]
        finally:
            policy.reset()  # type: ignore[operator]
    owner, name = entries_of(policy)[0]
    return getattr(owner, name)(*given)


def _parts(policy: nn.Module) -> Iterator[Any]:
    """The policy, then what it keeps the sampling loop in, if that is not itself."""
    yield policy
    for part in (*vars(policy).values(), *policy.children()):
        if any(_has(part, name) for name in ENTRIES):
            yield part


def _has(owner: Any, name: str) -> bool:
    return callable(getattr(type(owner), name, None))


def _networks(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if _takes_time(child):
            yield path + name, child
        else:
            yield from _networks(child, f"{path}{name}.")


def _takes_time(module: nn.Module) -> bool:
    """Whether a module takes a timestep beside something else: those that embed times take nothing else."""
    try:
        return len(Arguments(module).names) > 1
    except TypeError:
        return False
