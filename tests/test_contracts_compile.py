"""torch.compile: repeated blocks with fullgraph, whole networks with one graph to compute and one to skip."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from diffaccel import accelerate, accelerate_pipeline
from diffaccel.recording import recording
from tests import tiny
from tests.tiny import FAMILIES, Family

STEPS = 8


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def outputs(pipe: object, family: Family) -> list[Tensor]:
    """What the denoiser returns in a run, call by call."""
    seen: list[Tensor] = []
    # Around everything: hooks on the network itself would be traced with it.
    network = family.denoiser(pipe)
    real = type(network).__call__

    def record(self: nn.Module, *args: object, **kwargs: object) -> object:
        result = real(self, *args, **kwargs)
        if self is network:
            seen.append(result[0].clone())
        return result

    type(network).__call__ = record
    try:
        family.run(pipe, steps=STEPS, guidance=True)
    finally:
        type(network).__call__ = real
    return seen


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max())) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "level", "how"),
    [
        *(("flux", level, "network.compile") for level in FAMILIES["flux"].levels),
        ("flux", "model", "torch.compile"),
        ("sd", "model", "torch.compile"),
        ("sd", "deep", "network.compile"),
    ],
)
def test_whole_network_makes_two_graphs(name: str, level: str, how: str) -> None:
    family = FAMILIES[name]
    eager = accelerate_pipeline(family.make(), interval=3, level=level)
    expected = outputs(eager, family)
    pipe, counter = family.make(), CompileCounterWithBackend("eager")
    if how == "network.compile":
        family.denoiser(pipe).compile(backend=counter, fullgraph=True)
    else:
        setattr(pipe, family.network, torch.compile(family.denoiser(pipe), backend=counter, fullgraph=True))
    accelerate_pipeline(pipe, interval=3, level=level)
    assert close(outputs(pipe, family), expected)
    assert counter.frame_count == 2
    family.run(pipe, steps=STEPS, guidance=True)
    assert counter.frame_count == 2
    assert [site.skipped for site in pipe.acceleration.report().sites] == [
        site.skipped for site in eager.acceleration.report().sites
    ]


@pytest.mark.parametrize("how", ["network.compile", "torch.compile"])
def test_removed_from_a_compiled_network(how: str) -> None:
    pipe = tiny.flux()
    expected = tiny.run_flux(pipe)
    if how == "network.compile":
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    tiny.run_flux(pipe, steps=1)
    before = [dict(vars(module)) for module in pipe.transformer.modules()]
    accelerate_pipeline(pipe, interval=3)
    with pytest.raises(ValueError, match="already accelerated"):
        accelerate_pipeline(pipe)
    assert not torch.allclose(tiny.run_flux(pipe), expected)
    pipe.acceleration.remove()
    assert [dict(vars(module)) for module in pipe.transformer.modules()] == before
    torch.testing.assert_close(tiny.run_flux(pipe), expected)


@cache
def graphs_of_plain_blocks() -> int:
    """Graphs that the compiled blocks of an unaccelerated toy Flux take."""
    torch._dynamo.reset()
    pipe, counter = tiny.flux(), CompileCounterWithBackend("eager")
    pipe.transformer.compile_repeated_blocks(backend=counter, fullgraph=True)
    tiny.run_flux(pipe, steps=STEPS, guidance=True)
    return int(counter.frame_count)


@pytest.mark.parametrize(("level", "compiled_first"), [("model", True), ("model", False), ("block", True)])
def test_repeated_blocks_with_fullgraph(compiled_first: bool, level: str) -> None:
    family = FAMILIES["flux"]
    eager = accelerate_pipeline(family.make(), interval=3, level=level)
    expected = outputs(eager, family)
    pipe, counter = family.make(), CompileCounterWithBackend("eager")
    if compiled_first:
        pipe.transformer.compile_repeated_blocks(backend=counter, fullgraph=True)
        accelerate_pipeline(pipe, interval=3, level=level)
    else:
        accelerate_pipeline(pipe, interval=3, level=level)
        pipe.transformer.compile_repeated_blocks(backend=counter, fullgraph=True)
    assert close(outputs(pipe, family), expected)
    assert counter.frame_count == graphs_of_plain_blocks()
    pipe.acceleration.remove()
    assert all("forward" not in vars(block) for block in pipe.transformer.transformer_blocks)


def test_first_block_with_compiled_blocks() -> None:
    family = FAMILIES["flux"]
    expected = outputs(accelerate_pipeline(family.make(), "first_block", threshold=5.0), family)
    pipe = family.make()
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    accelerate_pipeline(pipe, "first_block", threshold=5.0)
    assert close(outputs(pipe, family), expected)
    assert sum(pipe.acceleration.report().sites[-1].skipped.values()) > 0


def test_sites_within_compiled_blocks_are_refused() -> None:
    pipe = tiny.flux()
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn lies within a compiled FluxTransformerBlock"):
        accelerate_pipeline(pipe, level="sublayer")
    assert "forward" not in vars(pipe.transformer.transformer_blocks[0].attn)


def test_compiled_after_it_was_accelerated_is_an_error() -> None:
    network = tiny.unet()
    inputs = torch.randn(1, 4, 8, 8), 900, torch.randn(1, 6, 24)
    with accelerate(network, interval=3, steps=4):
        network.compile(backend="eager")
        with pytest.raises(RuntimeError, match="compiled after it was accelerated"):
            network(*inputs)


def test_first_block_cannot_decide_within_a_graph() -> None:
    pipe = tiny.flux()
    pipe.transformer.compile(backend="eager")
    with pytest.raises(ValueError, match="first_block decides between its blocks: compile the blocks instead"):
        accelerate_pipeline(pipe, "first_block")


def test_compiled_networks_are_calibrated_before() -> None:
    pipe = tiny.flux()
    pipe.transformer.compile_repeated_blocks(backend="eager")
    with pytest.raises(ValueError, match="record or calibrate it before you compile it"), recording(pipe):
        pass
