"""Is it found by structure what a policy of another project calls, and through which methods?"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from diffaccel.denoisers import clocks, denoisers
from diffaccel.pipelines.policies import foreign
from diffaccel.query_clock import QueryClock
from tests.policies import (
    ACTION,
    FOREIGN,
    OBSERVATION,
    OBSERVED,
    ConditionalUnet1D,
    LowdimPolicy,
    decoder_policy,
    observe,
)


@pytest.mark.parametrize("name", FOREIGN)
def test_network_entries_and_sampler_are_found(name: str) -> None:
    make, path, sampler, _ = FOREIGN[name]
    policy = make()
    assert foreign.recognised(policy)
    assert foreign.network_of(policy) == (path, policy.get_submodule(path))
    assert foreign.sampler_of(policy) == sampler
    assert foreign.entries_of(policy)[-1][1] == "conditional_sample"
    assert denoisers(policy) == {path: policy.get_submodule(path)}
    assert isinstance(clocks(policy)[path], QueryClock)


@pytest.mark.parametrize("name", ["dit", "decoder", "rdt", "unet-lerobot"])
def test_a_policy_is_asked_whatever_it_was_in_the_midst_of(name: str) -> None:
    make, path, _, calls = FOREIGN[name]
    policy, made = make(), [0]
    policy.get_submodule(path).register_forward_hook(lambda *_: made.__setitem__(0, made[0] + 1))
    with torch.no_grad():
        for _ in range(2):
            foreign.ask(policy, *observe(policy))
    assert made == [2 * calls]
    if name == "dit":
        assert not policy._queues["action"]


class Times(nn.Module):
    """Embeds times."""

    def forward(self, timestep: Tensor) -> Tensor:
        return timestep.sin()


class Pair(LowdimPolicy):
    """Keeps an average of its network beside it."""

    def __init__(self) -> None:
        super().__init__(ConditionalUnet1D(ACTION, OBSERVED * OBSERVATION))
        self.average = copy.deepcopy(self.model)


def test_a_policy_that_is_not_clear_is_refused() -> None:
    with pytest.raises(TypeError, match=r"more than one network that takes a timestep \(model, average\)"):
        denoisers(Pair())
    with pytest.raises(TypeError, match=r"no network that takes a timestep.*PolicyPipeline"):
        denoisers(LowdimPolicy(nn.Linear(2, 2)))
    assert not foreign.recognised(nn.Linear(2, 2))
    embedding = decoder_policy()
    embedding.embed = Times()  # takes a timestep and nothing to denoise
    assert foreign.network_of(embedding)[0] == "model"
    compiled = decoder_policy()
    compiled.model.compile()
    with pytest.raises(ValueError, match="compiled"):
        clocks(compiled)
