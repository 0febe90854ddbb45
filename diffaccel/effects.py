"""Effects on the action: how far a policy's actions move if a branch adds again what it added some steps ago.

Schedules made from how alike features are do not know which differences matter. Here the whole sampling loop is
differentiated, the coefficients of the scheduler and all later calls of the network with it. With F[t] what a branch
adds at step t and G[t] the gradient of a direction v of the action with respect to it, reusing F[a] at step t moves the
action along v, to first order, by

    e[a, t] = <G[t], F[a] - F[t]>

Within a segment, computed at a and reused through e, these add up with their signs. The mean square of the sum over
random directions v, whose entries are +1 or -1, is the squared length of the change of the action:

    cost[a, e] = mean over v of (sum over t = a..e of e[a, t])^2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffaccel.additions import edited
from diffaccel.branches import Layer, layers
from diffaccel.compiled import check_recordable
from diffaccel.macs import branch_macs
from diffaccel.sites import BRANCH, sites
from diffaccel.watch import check_free

if TYPE_CHECKING:
    from diffaccel.pipelines.policy import PolicyPipeline

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Effects:
    """What reuse does to the actions of a policy: mean squared changes of an entry, in normalized units.

    Attributes:
        names: of the blocks, in order of execution.
        steps: calls of the network in a query, K.
        costs: shape (blocks, K, K): `costs[b, a, e]` if block b computes at step a and reuses that through step e >= a,
            and nothing else is reused; 0 for e < a.
        together: shape (K, K): the same if all blocks do so at once.
        macs: multiply-accumulate operations of one call of each block, for one sample.
    """

    names: tuple[str, ...]
    steps: int
    costs: Array
    together: Array
    macs: tuple[int, ...]

    @property
    def sensitivity(self) -> Array:
        """Shape (blocks, K): the effect of reuse from the step before, by step; 0 at step 0."""
        before = np.diagonal(self.costs, offset=1, axis1=1, axis2=2)
        return np.concatenate([np.zeros((len(self.names), 1)), before], axis=1)


def measure(
    pipe: PolicyPipeline,
    observations: Tensor | npt.NDArray[Any] | Sequence[Any],
    probes: int = 2,
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    batch: int = 4,
) -> Effects:
    """Measure effects on the executed actions, by gradients through uncached queries; the pipeline is left as it was.

    Observations differ from each other by orders of magnitude, directions of one action do not: many observations and
    few probes tell more than the reverse. Memory: the graph of a query, which is all activations of `steps` calls of
    the network for `batch` samples.

    Args:
        pipe: the policy, not accelerated.
        observations: shape (n, n_obs_steps, observation_dim), oldest first, in the robot's units.
        probes: random directions of the action for each observation, one backward pass each.
        seed: of noise and directions; those of an observation depend on its place only, not on `batch`.
        steps: denoising steps; the pipeline's default if None.
        progress: show a progress bar.
        batch: observations differentiated at once.

    Raises:
        ValueError: no observations, observations that the pipeline refuses, a number below 1, a single step, or a
            network that is accelerated, compiled or has no branch.
        RuntimeError: a branch is not called once in each call of the network, or gradients are not finite.
    """
    for name, value in (("probes", probes), ("batch", batch), ("steps", 1 if steps is None else steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    given = observations if isinstance(observations, Tensor) else torch.as_tensor(np.asarray(observations))
    pipe.conditioning(given)  # for its errors, before the work begins
    if not len(given):
        raise ValueError("no observations: give at least one, better dozens, of different phases of the task")
    check_free(pipe.denoiser)
    check_recordable(pipe.denoiser)
    names = tuple(site.name for site in sites(pipe.denoiser, BRANCH))
    found, total = layers(pipe.denoiser), _Sums()
    bar = tqdm(total=len(given) * probes, desc="measuring effects", unit="gradient", disable=not progress)
    with _evaluated(pipe.denoiser), torch.inference_mode(False), torch.enable_grad(), bar:
        macs = branch_macs(found, lambda: _query(pipe, given[:1].clone(), _generators(seed, 1), 1))
        for start in range(0, len(given), batch):
            part = given[start : start + batch].clone()
            recorded = _record(pipe, found, names, part, seed + start, steps)
            for probe in range(probes):
                total.add(*_effects(recorded, _directions(recorded.action, seed + start, probe), found))
                bar.update(len(part))
    pipe.scheduler.set_timesteps(pipe.default_steps)  # solvers of several steps let go of the graph
    entries = recorded.action[0].numel()
    costs, together = (table / (total.samples * entries) for table in (total.costs, total.together))
    if not (np.isfinite(costs).all() and np.isfinite(together).all()):
        raise RuntimeError("gradients of the action are not finite: measure effects with a network in float32")
    return Effects(names, costs.shape[1], costs, together, tuple(macs))


class _Sums:
    """Squared sums of segments, over samples and directions."""

    def __init__(self) -> None:
        self.samples, self.costs, self.together = 0, np.zeros(()), np.zeros(())

    def add(self, moved: Tensor, moved_together: Tensor) -> None:
        """Take in effects, shape (blocks, n, K, K), and those of all blocks together, shape (n, K, K)."""
        self.samples += len(moved_together)
        self.costs = self.costs + segments(moved).square().sum(1).cpu().numpy()
        self.together = self.together + segments(moved_together).square().sum(0).cpu().numpy()


@dataclass(frozen=True)
class _Recorded:
    """A query with its graph: the action, and by block and step what was added and where the gradient is taken."""

    action: Tensor
    added: list[list[Tensor]]
    leaves: list[list[Tensor]]


def reuse(gradients: Tensor, added: Tensor) -> Tensor:
    """How far reuse moves the action, e[a, t] = <G[t], F[a] - F[t]>, in float64.

    Args:
        gradients: G of one block, shape (n, K, ...).
        added: F, the same shape.

    Returns:
        Shape (n, K, K): row = step that was computed, column = step that reuses it.
    """
    products = torch.einsum("nad,ntd->nat", added.flatten(2).double(), gradients.flatten(2).double())
    return products - torch.diagonal(products, dim1=-2, dim2=-1)[..., None, :]


def segments(effects: Tensor) -> Tensor:
    """Sums of e[a, t] over t = a..e, by (a, e), shape (..., K, K); 0 for e < a."""
    return effects.triu().cumsum(-1).triu()


def _record(
    pipe: PolicyPipeline, found: Sequence[Layer], names: Sequence[str], part: Tensor, seed: int, steps: int | None
) -> _Recorded:
    """Queries of some observations, recorded with their graph."""
    added: list[list[Tensor]] = [[] for _ in names]
    leaves: list[list[Tensor]] = [[] for _ in names]

    def edit(number: int, output: Tensor) -> Tensor:
        # The gradient is taken at a zero that is added, so it does not matter what else needs one.
        leaf = torch.zeros_like(output, requires_grad=True)
        added[number].append(output.detach())
        leaves[number].append(leaf)
        return output + leaf

    with edited(found, edit):
        action = _query(pipe, part, _generators(seed, len(part)), steps)
    calls = {name: len(series) for name, series in zip(names, added, strict=True)}
    if len(set(calls.values())) > 1:
        raise RuntimeError(f"every branch must be called once in each call of the network, these were called: {calls}")
    if max(calls.values()) < 2:
        raise ValueError("a query of one step reuses nothing: choose at least two")
    return _Recorded(action, added, leaves)


def _effects(recorded: _Recorded, direction: Tensor, found: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """Effects along a direction of the action: of each block, shape (blocks, n, K, K), and of all at once."""
    flat = [leaf for series in recorded.leaves for leaf in series]
    taken = torch.autograd.grad(
        recorded.action, flat, direction, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    count = len(recorded.leaves[0])
    stacked = [torch.stack(taken[i : i + count], dim=1) for i in range(0, len(taken), count)]
    added = [torch.stack(series, dim=1) for series in recorded.added]
    effects = torch.stack([reuse(gradient, series) for gradient, series in zip(stacked, added, strict=True)])
    if not all(layer.additive for layer in found) or len({series.shape for series in added}) > 1:
        return effects, effects.sum(0)
    # All blocks reuse at once: none reacts to what those before it add, and that goes straight to the end of the
    # stream, where the last block adds, too.
    return effects, sum((reuse(stacked[-1], series) for series in added), torch.zeros(()))


def _query(pipe: PolicyPipeline, part: Tensor, generators: list[torch.Generator], steps: int | None) -> Tensor:
    """The executed actions in normalized units, shape (n, n_action_steps, action_dim)."""
    # With a starting point that needs a gradient, torch takes no fused path around a branch.
    start = pipe.noise(len(part), generators).requires_grad_()
    trajectory = pipe.sample(pipe.conditioning(part), start, steps, generators)
    begin = pipe.config.n_obs_steps - 1
    return trajectory[:, begin : begin + pipe.config.n_action_steps]


def _generators(seed: int, samples: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(samples)]


def _directions(action: Tensor, seed: int, probe: int) -> Tensor:
    """Random signs, a row for each sample."""
    rng = (np.random.default_rng((seed + i, probe)) for i in range(len(action)))
    signs = np.stack([one.choice([-1.0, 1.0], size=tuple(action.shape[1:])) for one in rng])
    return torch.from_numpy(signs).to(action)


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """No dropout in the `with` block."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
