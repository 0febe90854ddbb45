"""What block-wise caching promises beside its sums: what idles, what is forgotten, and that nothing is left behind."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffaccel import accelerate
from diffaccel.branch_session import BranchSession
from diffaccel.clock import Clock
from tests.block_reference import CASES, STEPS, Case, Planned

FIRST = range(STEPS)
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def planned(case: Case, order: int = 0, **steps: Any) -> Planned:
    """A plan by kind of block; blocks of other kinds compute in step 0."""
    return Planned({name: list(steps.get(name.rpartition(".")[2], [0])) for name in case.names()}, order)


def count(network: nn.Module, *paths: str, attr: str = "forward") -> Counter[str]:
    """Counts how often the real code of these modules is entered, from now on."""
    calls: Counter[str] = Counter()

    def counted(path: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[path] += 1
            return real(*args, **kwargs)

        return call

    for path in paths:
        owner = network.get_submodule(path)
        setattr(owner, attr, counted(path, getattr(owner, attr)))
    return calls


def test_norms_of_skipped_branches_are_idle() -> None:
    case = CASES["decoder"]
    network = case.make()
    norms = {kind: f"decoder.layers.1.norm{number}" for number, kind in enumerate(("sa", "ca", "ffn"), 1)}
    calls = count(network, *norms.values())
    with accelerate(network, planned(case, sa=[0, 2, 4], ca=[0, 5], ffn=[0]), steps=STEPS):
        case.run(network)
    assert [calls[norm] for norm in norms.values()] == [3, 2, 1]


def test_layers_and_stacks_in_which_nothing_computes_are_passed_by() -> None:
    case = CASES["decoder"]
    network, rows = case.make(), {name: [0] for name in case.names()}
    rows["decoder.layers.0.sa"], rows["decoder.layers.1.ffn"] = [0, 3], [0, 3, 5]
    calls = count(network, "decoder", "decoder.layers.0", "decoder.layers.1")
    with accelerate(network, Planned(rows), steps=STEPS):
        case.run(network)
    assert calls == {"decoder": 3, "decoder.layers.0": 2, "decoder.layers.1": 3}


PASSED_BY = {
    "decoder": "decoder.layers.1",
    "bert": "encoder.layers.0",
    "dit-rotary": "transformer_blocks.1",
    "dit-multihead": "transformer_blocks.0",
    "rdt": "blocks.2",
    "unet": "mid_block.attentions.0.transformer_blocks.0",
    "ada-norm": "transformer_blocks.1",
}


@pytest.mark.parametrize(("name", "layer"), PASSED_BY.items(), ids=PASSED_BY)
@pytest.mark.parametrize("order", [0, 1])
def test_layers_of_all_kinds_that_add_are_passed_by(name: str, layer: str, order: int) -> None:
    case = CASES[name]
    network = case.make()
    calls = count(network, layer)
    with accelerate(network, planned(case, order, sa=[0, 2, 5], ffn=[0, 5, 6]), steps=STEPS):
        for _ in range(2):
            case.run(network)
    assert calls[layer] == 2 * 4


@pytest.mark.parametrize("name", ["decoder", "decoder-encoded"])
def test_conditions_are_encoded_only_where_a_branch_attends_to_them(name: str) -> None:
    case = CASES[name]
    network = case.make()
    calls = count(network, "encoder")
    with accelerate(network, planned(case, sa=FIRST, ca=[0, 3]), steps=STEPS):
        case.run(network)
    assert calls["encoder"] == 2


@pytest.mark.parametrize("name", ["dit-rotary", "dit-multihead"])
def test_a_modulation_runs_only_where_a_branch_of_its_layer_computes(name: str) -> None:
    case = CASES[name]
    network, path = case.make(), "transformer_blocks.1.adaLN_modulation"
    calls = count(network, path)
    with accelerate(network, planned(case, sa=[0, 2, 5], ffn=[0, 2, 3]), steps=STEPS):
        case.run(network)
    assert calls[path] == 4


def test_encoder_layers_take_their_fused_path_again_afterwards() -> None:
    case = CASES["bert"]
    network = case.make()
    calls = count(network, "encoder.layers.0", attr="_sa_block")
    before = case.run(network)
    assert not calls  # the fused path
    with accelerate(network, planned(case, sa=[0, 4]), steps=STEPS):
        case.run(network)
        assert calls["encoder.layers.0"] == 2
    assert torch.equal(case.run(network), before)
    assert calls["encoder.layers.0"] == 2


@cases
def test_nothing_is_left_behind(case: Case) -> None:
    network = case.make()
    before, full, keys = attributes(network), case.run(network), list(network.state_dict())
    with accelerate(network, planned(case, sa=[0, 4]), steps=STEPS):
        case.run(network)
        assert list(network.state_dict()) == keys
        twin = copy.deepcopy(network)
    assert attributes(network) == before
    assert torch.equal(case.run(network), full)
    # A copy is not accelerated, and shares nothing. (It may not take fused paths, which round otherwise.)
    torch.testing.assert_close(case.run(twin), full, rtol=1e-4, atol=1e-5)
    ours = {id(module) for module in network.modules()}
    assert not any(id(getattr(value, "__self__", None)) in ours for m in twin.modules() for value in vars(m).values())


def attributes(network: nn.Module) -> list[dict[str, Any]]:
    """By module, all attributes by identity, and the hooks."""
    return [
        {name: list(value) if "hooks" in name else id(value) for name, value in vars(module).items()}
        for module in network.modules()
    ]


@cases
def test_anchors_never_survive_a_run(case: Case) -> None:
    network = case.make()
    session = BranchSession(network, planned(case, order=1, sa=[0, 2, 3]), Clock(STEPS))
    session.attach()
    first = case.run(network)

    def fail(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    hook = network.register_forward_pre_hook(lambda *_: fail(session.clock.step + 1))
    with pytest.raises(KeyboardInterrupt):
        case.run(network, batch=3)
    hook.remove()
    assert torch.equal(case.run(network), first)
    assert session._anchors
    session.forget()
    assert not any(modulation._held for modulation, _ in session._gates.values())
    session.detach()
    assert not any((session._anchors, session._sums, session._stand_ins, session._gates))


@pytest.mark.parametrize("case", [CASES[name] for name in CASES if name != "ada-norm"])  # which takes one sample
def test_another_batch_in_mid_run_begins_a_history(case: Case) -> None:
    """What is computed for the new batch is what a run of its own would compute from there on."""
    network = case.make()
    torch.manual_seed(1)
    small, large = torch.randn(1, *case.shape), torch.randn(2, *case.shape)
    expected = case.call(network, large, 40.0)
    with accelerate(network, planned(case), steps=STEPS), torch.no_grad():
        held = [case.call(network, small, time) for time in (90.0, 80.0)]
        fresh = case.call(network, large, 40.0)
        assert [len(one) for one in held] == [1, 1]
        torch.testing.assert_close(fresh, expected, rtol=1e-4, atol=1e-5)
        assert case.call(network, large, 30.0).isfinite().all()


@cases
def test_a_training_computes_everything_and_has_gradients(case: Case) -> None:
    network = case.make().requires_grad_(True).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(1, *case.shape)
    times = [90.0 - 10 * step for step in range(3)]

    def gradients() -> list[Tensor]:
        network.zero_grad()
        sum(case.call(network, x * (1 + t / 90), t).pow(2).mean() for t in times).backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    expected = gradients()
    with accelerate(network, planned(case), steps=STEPS):
        found = gradients()
    assert len(found) == len(expected) > 10
    assert all(map(torch.equal, found, expected))


@cases
def test_the_report_counts_each_branch(case: Case) -> None:
    network = case.make()
    with accelerate(network, planned(case, sa=[0, 3, 6], ca=[0, 2], ffn=[0]), steps=STEPS) as acceleration:
        for _ in range(2):
            case.run(network)
        report = acceleration.report()
    updates = {"sa": 3, "ca": 2, "ffn": 1}
    assert [site.name for site in report.sites] == case.names()
    for site in report.sites:
        computed = updates[site.name.rpartition(".")[2]]
        assert (site.computed, site.skipped) == ({"call 0": computed}, {"call 0": STEPS - computed})


def test_a_compiled_network_is_refused_as_it_is() -> None:
    case = CASES["decoder"]
    network = case.make()
    network.compile()
    before = attributes(network)
    with pytest.raises(ValueError, match=r"is compiled as a whole.*accelerate it uncompiled"):
        accelerate(network, planned(case), steps=STEPS)
    assert attributes(network) == before
