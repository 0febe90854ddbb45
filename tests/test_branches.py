"""Are the branches of each kind of layer found: their names, their order, and what idles with them?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from diffaccel.branches import Layer, condition_encoder, layers, stacks
from diffaccel.sites import BRANCH, sites
from tests import tiny
from tests.block_reference import CASES, Case
from tests.policies import ACTION, HORIZON, OBSERVATION, OBSERVED, ConditionalUnet1D
from tests.policy_transformers import TransformerForDiffusion

# Of each kind, the norms that idle with the branches of a layer.
NORMS: dict[str, list[tuple[str, list[str]]]] = {
    "decoder": [("sa", ["norm1"]), ("ca", ["norm2"]), ("ffn", ["norm3"])],
    "decoder-encoded": [("sa", ["norm1"]), ("ca", ["norm2"]), ("ffn", ["norm3"])],
    "decoder-post-norm": [("sa", []), ("ca", []), ("ffn", [])],
    "bert": [("sa", ["norm1"]), ("ffn", ["norm2"])],
    "bert-post-norm": [("sa", []), ("ffn", [])],
    "dit-rotary": [("sa", ["norm1"]), ("ffn", ["norm2"])],
    "dit-multihead": [("sa", ["norm1"]), ("ffn", ["norm2"])],
    "rdt": [("sa", ["norm1"]), ("ca", ["norm2"]), ("ffn", ["norm3"])],
    "unet": [("sa", ["norm1"]), ("ca", ["norm2"]), ("ffn", ["norm3"])],
    "ada-norm": [("sa", ["norm1"]), ("ffn", ["norm3"])],
}
cases = pytest.mark.parametrize(("name", "case"), CASES.items(), ids=CASES)


def described(layer: Layer) -> list[tuple[str, list[str]]]:
    """Kinds of a layer's branches, with the names of what idles with each."""
    names = {module: name for name, module in layer.module.named_modules()}
    return [(branch.kind, [names[module] for module in branch.idle]) for branch in layer.branches]


@cases
def test_names_kinds_and_idle_norms(name: str, case: Case) -> None:
    network = case.make()
    found = layers(network)
    assert [branch.name for layer in found for branch in layer.branches] == case.names()
    assert all(described(layer) == NORMS[name] for layer in found)
    modules = dict(network.named_modules())
    for layer in found:
        assert modules[layer.name] is layer.module
        assert layer.additive == ("post-norm" not in name)
        gated = "dit" in name
        assert (layer.modulation is not None) == gated
        assert not gated or layer.modulation is layer.module.adaLN_modulation
        assert all(branch.name == f"{layer.name}.{branch.kind}" for branch in layer.branches)


@cases
def test_the_order_is_that_of_execution(name: str, case: Case) -> None:
    network, seen = case.make(), []
    for layer in layers(network):
        layer.module.register_forward_pre_hook(lambda *_: None)  # no fused path past the branches
        for branch in layer.branches:
            real = getattr(branch.owner, branch.attr)
            setattr(branch.owner, branch.attr, watched(real, branch.name, seen))
    with torch.no_grad():
        case.call(network, torch.randn(1, *case.shape), 50.0)
    assert seen == case.names()


def watched(real: Callable[..., Any], name: str, seen: list[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        seen.append(name)
        return real(*args, **kwargs)

    return call


def test_sites_of_level_branch_are_the_branches() -> None:
    network = CASES["decoder"].make()
    branches = [branch for layer in layers(network) for branch in layer.branches]
    found = sites(network, BRANCH)
    assert [(site.name, site.owner, site.attr, site.idle, site.kind) for site in found] == [
        (branch.name, branch.owner, branch.attr, branch.idle, branch.kind) for branch in branches
    ]
    assert len(found) == 6


def test_encoders_of_conditions_are_no_layers() -> None:
    for name, kind in (("decoder", nn.Sequential), ("decoder-encoded", nn.TransformerEncoder)):
        network = CASES[name].make()
        assert isinstance(condition_encoder(network), kind)
        assert condition_encoder(network) is network.encoder
        assert [layer.name for layer in layers(network)] == ["decoder.layers.0", "decoder.layers.1"]
    for name in ("bert", "dit-rotary", "rdt", "unet"):
        assert condition_encoder(CASES[name].make()) is None


def test_stacks_are_those_that_end_with_their_layers() -> None:
    network = CASES["decoder"].make()
    assert stacks(network) == [(network.decoder, list(network.decoder.layers))]
    network.decoder.norm = nn.LayerNorm(32)  # which works on the stream
    assert stacks(network) == []
    empty = TransformerForDiffusion(ACTION, ACTION, HORIZON, OBSERVED, OBSERVATION, n_layer=0)
    assert stacks(empty) == []


FALLBACK = {
    "flux": [
        *[f"transformer_blocks.{i}.{part}" for i in range(2) for part in ("attn.sa", "ff.ffn", "ff_context.ffn")],
        *[f"single_transformer_blocks.{i}.proj_out.ffn" for i in range(2)],
    ],
    "dit": [f"transformer_blocks.{i}.{part}" for i in range(3) for part in ("attn1.sa", "ff.ffn")],
}


@pytest.mark.parametrize("family", FALLBACK)
def test_layers_of_other_kinds_have_their_sublayers_as_branches(family: str) -> None:
    """They are gated by what is inside their norms, which therefore run; nothing of them is passed by."""
    found = layers(tiny.FAMILIES[family].denoiser(tiny.FAMILIES[family].make()))
    assert [branch.name for layer in found for branch in layer.branches] == FALLBACK[family]
    assert not any(layer.additive or layer.modulation for layer in found)
    for layer in found:
        norms = [module for module in layer.module.modules() if "Norm" in type(module).__name__]
        assert not {*norms} & {module for branch in layer.branches for module in branch.idle}


def test_convolutional_networks_have_no_branches_and_are_told_what_works() -> None:
    network = ConditionalUnet1D(ACTION, OBSERVED * OBSERVATION)
    assert layers(network) == []
    with pytest.raises(ValueError, match=r"ConditionalUnet1D has no attention.*method='taylorseer' with level='deep'"):
        sites(network, BRANCH)
    with pytest.raises(ValueError, match="no branch site was found in Linear"):
        sites(nn.Linear(2, 2), BRANCH)


def test_wrappers_of_torch_compile_are_looked_through() -> None:
    network = CASES["dit-rotary"].make()

    class Wrapper(nn.Module):
        _orig_mod = network

    assert [layer.module for layer in layers(Wrapper())] == [layer.module for layer in layers(network)]
