"""Every denoiser class of diffusers: are sites found, do skipped steps skip, is a full plan exact, is removal exact?"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from diffaccel import TaylorSeer, accelerate, accelerate_pipeline
from diffaccel.acceleration import Acceleration
from diffaccel.sites import LEVELS, sites
from tests.zoo import specimen
from tests.zoo_census import denoisers
from tests.zoo_findings import PREPARING, TIMELESS, UNBUILDABLE, UNFIT, UNUSED
from tests.zoo_pipelines import assembled

STEPS = 4
# What diffusers and torch say of their own classes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

NAMES = [name for name in denoisers() if name not in UNBUILDABLE]
TIMED = [name for name in NAMES if name not in TIMELESS]
# "deep" is for networks that go down and up again; all other levels are for all.
EXPECTED = [
    (name, level)
    for name in TIMED
    for level in LEVELS
    if level != "deep" or "self.up_blocks" in inspect.getsource(denoisers()[name])
]
fitting = pytest.mark.parametrize(("name", "level"), [pair for pair in EXPECTED if pair not in UNFIT])


@cache
def plain(name: str) -> list[list[Tensor]]:
    """The outputs of the network itself, step by step."""
    return [specimen(name).run(step, STEPS) for step in range(STEPS)]


def reusing(name: str, level: str, interval: int) -> Acceleration:
    """The network with plain reuse of the features of every `interval`-th step."""
    method = TaylorSeer(interval=interval, order=0, warmup=1, level=level)
    return accelerate(specimen(name).network, method, steps=STEPS)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two calls returned the same, bit by bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@contextmanager
def called_with(network: nn.Module, arguments: dict[str, Any]) -> Iterator[None]:
    """Hooks that came before see what the network is called with; the network itself gets these arguments."""
    handle = network.register_forward_pre_hook(lambda *_: ((), arguments), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def entries(network: nn.Module, level: str) -> Iterator[Counter[str]]:
    """Counts how often real code is entered: that of attention and feed-forward modules, and of residual blocks.

    At level "sublayer" residual blocks are left out, since their residual stream has to run.
    """
    counts: Counter[str] = Counter()
    heavy = re.compile(r"^(?!.*Block)(.*Attention|.*Attn|FeedForward)" + "|Resnet|ResBlock" * (level != "sublayer"))
    names = [name for name, module in network.named_modules() if heavy.search(type(module).__name__)]
    innermost = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]

    def counted(name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return real(*args, **kwargs)

    for name in innermost:
        module = network.get_submodule(name)
        module.forward = partial(counted, name, module.forward)
    try:
        yield counts
    finally:
        for name in innermost:
            del network.get_submodule(name).forward


def traces(network: nn.Module) -> dict[str, int]:
    """The identities of all attributes of all modules, and of what their dictionaries hold: hooks, parameters, ..."""
    found = {}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            held = value.items() if type(value) is dict else ()
            found |= {f"{path}.{name}": id(value), **{f"{path}.{name}[{key}]": id(inner) for key, inner in held}}
    return found


@cache
def lasting(name: str) -> dict[str, int]:
    """The traces of a network that was never accelerated, but for the attributes that it sets in every call."""
    plain(name)
    before = traces(specimen(name).network)
    specimen(name).run(0, STEPS)
    return {key: value for key, value in traces(specimen(name).network).items() if before.get(key) == value}


def test_every_class_is_built_and_runs_or_is_listed() -> None:
    assert set(UNBUILDABLE) <= set(denoisers())
    assert len(UNBUILDABLE) <= 0.05 * len(denoisers())
    for name in NAMES:
        first, second = plain(name)[:2]
        assert all(tensor.isfinite().all() for tensor in (*first, *second)), name
        assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True)), name


@pytest.mark.parametrize("name", NAMES)
def test_outputs_depend_on_every_block(name: str) -> None:
    """Or else a block that is left out would go unnoticed."""
    subject, expected = specimen(name), plain(name)

    def changed(*call: Any) -> Any:
        return tree_map(lambda leaf: leaf.roll(1) if torch.is_tensor(leaf) else leaf, call[-1])

    for site in sites(subject.network, "block"):
        handle = site.owner.register_forward_hook(changed)
        outputs = subject.run(0, STEPS)
        handle.remove()
        assert not all(torch.allclose(a, b, rtol=0.01) for a, b in zip(outputs, expected[0], strict=True)), site.name


@fitting
def test_skipped_steps_skip(name: str, level: str) -> None:
    subject, expected = specimen(name), plain(name)
    with entries(subject.network, level) as counts, reusing(name, level, interval=STEPS) as reuse:
        computed = subject.run(0, STEPS)
        assert equal(computed, expected[0])
        everything = counts.copy()
        counts.clear()
        with called_with(subject.network, subject.inputs(0, STEPS)):
            assert equal(subject.run(1, STEPS), computed)
        entered = {entry: count for entry, count in counts.items() if not entry.startswith(PREPARING.get(name, ()))}
        forecast = subject.run(2, STEPS)
        report = reuse.report()
    skipped = [sum(site.skipped.values()) for site in report.sites]
    assert skipped.count(0) == UNUSED.get((name, level), 0)
    assert all(count >= 2 for count in skipped if count)
    if level == "deep":
        assert sum(entered.values()) < everything.total() / 2
    else:
        assert not entered
    for there, value in zip(expected[2], forecast, strict=True):
        assert (value.shape, value.dtype) == (there.shape, there.dtype)
        assert value.isfinite().all()
        # Neither computed nor, as the head and what leads to it have run, a mere copy.
        assert not torch.equal(value, there)


@fitting
def test_a_full_plan_is_bit_identical(name: str, level: str) -> None:
    expected = plain(name)
    with reusing(name, level, interval=1):
        for step in range(STEPS):
            assert equal(specimen(name).run(step, STEPS), expected[step])


@fitting
def test_removal_is_exact(name: str, level: str) -> None:
    subject = specimen(name)
    before, names, keys = lasting(name), set(traces(subject.network)), list(subject.network.state_dict())
    with reusing(name, level, interval=STEPS):
        assert set(traces(subject.network)) > names
        assert list(subject.network.state_dict()) == keys
        subject.run(0, STEPS)
        subject.run(1, STEPS)
    assert set(traces(subject.network)) == names
    assert traces(subject.network).items() >= before.items()
    assert list(subject.network.state_dict()) == keys
    assert equal(subject.run(1, STEPS), plain(name)[1])


@pytest.mark.parametrize("name", TIMED)
def test_levels_that_do_not_fit_are_errors(name: str) -> None:
    subject = specimen(name)
    before, names = lasting(name), set(traces(subject.network))
    for level in LEVELS:
        if (name, level) in EXPECTED and (name, level) not in UNFIT:
            continue
        message = UNFIT.get((name, level), "no deep site was found in")
        refused = pytest.raises((ValueError, RuntimeError), match=rf"{message}.*[Cc]hoose another level")
        with refused, reusing(name, level, interval=STEPS):
            subject.run(0, STEPS)
        assert set(traces(subject.network)) == names
        assert traces(subject.network).items() >= before.items()
    assert equal(subject.run(1, STEPS), plain(name)[1])


@pytest.mark.parametrize("name", TIMELESS)
def test_a_network_without_time_is_an_error(name: str) -> None:
    with pytest.raises(TypeError, match="has no timestep among its parameters"):
        reusing(name, "model", interval=STEPS)


@pytest.mark.parametrize("interval", [1, STEPS])
@pytest.mark.parametrize("level", [level for level in LEVELS if level != "deep"])
@pytest.mark.parametrize("name", TIMELESS)
def test_a_network_without_time_skips_in_a_pipeline(name: str, level: str, interval: int) -> None:
    subject, before, pipe, outputs = specimen(name), lasting(name), assembled(TIMELESS[name]), []
    accelerate_pipeline(pipe, TaylorSeer(interval=interval, order=0, warmup=1, level=level))
    pipe.scheduler.set_timesteps(STEPS)
    for step, time in enumerate(pipe.scheduler.timesteps):
        outputs.append(subject.run(step, STEPS))
        pipe.scheduler.step(outputs[-1][0], time, subject.inputs(step, STEPS)["input_ids"])
    pipe.acceleration.remove()
    assert all(value.isfinite().all() for output in outputs for value in output)
    assert [equal(*pair) for pair in zip(outputs, plain(name), strict=True)] == [
        step % interval == 0 for step in range(STEPS)
    ]
    assert traces(subject.network).items() >= before.items()
