"""Are policies of other projects accelerated as they are, by their own methods, and left as they were?"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffaccel import accelerate_pipeline
from diffaccel.pipelines.policies import foreign
from tests.policies import (
    ACTION,
    EXECUTED,
    FOREIGN,
    HORIZON,
    OBSERVATION,
    OBSERVED,
    DiffusionObjective,
    MultiTaskDiTPolicy,
    decoder_policy,
    observe,
    query,
)


def level_of(name: str) -> str:
    return "deep" if "unet" in name else "block"


@pytest.mark.parametrize("name", FOREIGN)
def test_computing_all_calls_changes_nothing(name: str) -> None:
    make, *_, calls = FOREIGN[name]
    policy = make()
    full = [query(policy, batch=2, seed=seed) for seed in range(3)]
    accelerate_pipeline(policy, "taylorseer", interval=1, level=level_of(name))
    assert all(torch.equal(query(policy, batch=2, seed=seed), full[seed]) for seed in range(3))
    report = policy.acceleration.report()
    assert report.steps == calls
    assert all(site.computed == {"call 0": calls} for site in report.sites)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_calls_of_a_query_are_counted_then_skipped(name: str) -> None:
    make, *_, calls = FOREIGN[name]
    policy = make()
    full = query(policy)
    accelerate_pipeline(policy, "taylorseer", interval=3, order=0, warmup=1, level=level_of(name))
    assert torch.equal(query(policy), full)  # the first query is only counted
    fast = query(policy)
    assert not torch.equal(fast, full)
    assert torch.equal(query(policy), fast)  # nothing of a query is left for the next
    plan = policy.acceleration.plan
    assert plan.steps == calls
    assert policy.acceleration.report().sites[0].skipped["call 0"] == calls - sum(plan.rows[0]) > 0
    policy.acceleration.remove()
    assert torch.equal(query(policy), full)


@pytest.mark.parametrize("name", ["dit", "dit-rk4", "decoder", "rdt"])
def test_skipped_calls_return_what_the_last_computed_one_did(name: str) -> None:
    """Reuse of the last layer's output, by hand: a hook on it replaces what it returns."""
    make, path, *_ = FOREIGN[name]
    policy, interval = make(), 3
    last = list(chain_of(policy.get_submodule(path)))[-1]
    held: list[Tensor] = []
    count = [0]

    def reuse(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        if count[0] % interval == 0:
            held[:] = [output]
        count[0] += 1
        return held[0]

    handle = last.register_forward_hook(reuse)
    expected = query(policy, batch=2)
    handle.remove()
    accelerate_pipeline(policy, "taylorseer", interval=interval, order=0, warmup=1, level="model")
    query(policy)
    assert torch.equal(query(policy, batch=2), expected)


def chain_of(network: nn.Module) -> nn.ModuleList:
    """The layers of a stand-in's network."""
    chains = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return max(chains, key=lambda chain: sum(parameter.numel() for parameter in chain.parameters()))


def test_the_network_runs_only_when_the_queue_of_actions_is_empty() -> None:
    policy, calls = MultiTaskDiTPolicy(DiffusionObjective(calls=4)), [0]
    accelerate_pipeline(policy, "taylorseer", interval=2, order=0, warmup=1, level="block")
    policy.noise_predictor.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    seen = []
    for step in range(3 * EXECUTED):
        policy.select_action(*observe(policy, seed=step))
        seen.append(calls[0])
    assert seen == [4] * EXECUTED + [8] * EXECUTED + [12] * EXECUTED
    assert policy.acceleration.report().steps == 4


@pytest.mark.parametrize("other", [5, 15])
def test_another_number_of_calls_is_an_error(other: int) -> None:
    policy = decoder_policy()
    full = query(policy)
    accelerate_pipeline(policy, "taylorseer", interval=3, order=0, warmup=1, level="block")
    query(policy)
    fast = query(policy)
    policy.num_inference_steps = other
    made = "5" if other < 10 else "more than 10"
    with pytest.raises(RuntimeError, match=rf"makes {made} network calls, and the plan is for 10.*remove\(\)"):
        query(policy)
    policy.num_inference_steps = 10
    assert torch.equal(query(policy), fast)
    policy.acceleration.remove()
    assert torch.equal(query(policy), full)


def test_a_query_that_failed_leaves_nothing_behind() -> None:
    policy = decoder_policy()
    accelerate_pipeline(policy, "taylorseer", interval=3, order=1, warmup=1, level="block")
    query(policy)
    fast = query(policy)
    real, calls = policy.noise_scheduler.step, [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    policy.noise_scheduler.step = failing
    with pytest.raises(KeyboardInterrupt):
        query(policy, seed=7)
    policy.noise_scheduler.step = real
    assert torch.equal(query(policy), fast)


def test_calls_outside_of_a_query_are_computed() -> None:
    policy = decoder_policy()
    sample, cond = torch.randn(1, HORIZON, ACTION), torch.randn(1, OBSERVED, OBSERVATION)
    expected = policy.model(sample, torch.tensor([3]), cond)
    accelerate_pipeline(policy, "taylorseer", interval=3, order=0, warmup=1, level="block")
    for _ in range(2):
        query(policy)
    for _ in range(2):
        assert torch.equal(policy.model(sample, torch.tensor([3]), cond), expected)
    policy.model(sample, torch.tensor([3]), cond).sum().backward()
    assert policy.model.head.weight.grad is not None
    fast = query(policy)
    assert torch.equal(query(policy), fast)


@pytest.mark.parametrize("name", ["dit", "decoder", "rdt", "unet-lerobot"])
def test_taking_it_off_restores_every_attribute(name: str) -> None:
    policy = FOREIGN[name][0]()
    owners = [owner for owner, _ in foreign.entries_of(policy)]
    before = [dict(vars(thing)) for thing in (*policy.modules(), *owners)]
    keys = list(policy.state_dict())
    accelerate_pipeline(policy, "taylorseer", interval=3, order=0, warmup=1, level=level_of(name))
    query(policy)
    query(policy)
    assert list(policy.state_dict()) == keys
    policy.acceleration.remove()
    after = [dict(vars(thing)) for thing in (*policy.modules(), *owners)]
    assert [list(one) for one in before] == [list(other) for other in after]
    for one, other in zip(before, after, strict=True):
        assert all(other[key] is value for key, value in one.items() if callable(value))


def test_a_copy_is_not_accelerated() -> None:
    policy = decoder_policy()
    full = query(policy)
    accelerate_pipeline(policy, "taylorseer", interval=3, order=0, warmup=1, level="block")
    query(policy)
    twin = copy.deepcopy(policy)
    assert torch.equal(query(twin), full)
    assert torch.equal(query(twin), full)
    assert not torch.equal(query(policy), full)
