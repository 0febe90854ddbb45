"""Are the features found where the papers catch them, in the order in which the network computes them?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffaccel.sites import LEVELS, levels, sites
from tests import tiny


def test_flux_sublayers_are_those_of_the_official_code() -> None:
    found = sites(tiny.flux_transformer(), "sublayer")
    assert [site.name for site in found] == [
        *(f"transformer_blocks.{i}.{part}" for i in range(2) for part in ("attn", "ff", "ff_context")),
        *(f"single_transformer_blocks.{i}.proj_out" for i in range(2)),
    ]
    single = tiny.flux_transformer().single_transformer_blocks[0]
    assert [type(module) for module in found[-1].idle] == [type(single.attn), nn.Linear, nn.GELU]


def test_dit_sublayers_are_those_of_the_official_code() -> None:
    found = sites(tiny.dit().transformer, "sublayer")
    assert [site.name for site in found] == [
        f"transformer_blocks.{i}.{part}" for i in range(3) for part in ("attn1", "ff")
    ]


def test_unet_convolution_blocks_count_as_sublayers() -> None:
    names = [site.name for site in sites(tiny.unet(), "sublayer")]
    assert names[:2] == ["down_blocks.0.resnets.0.conv2", "down_blocks.0.attentions.0.transformer_blocks.0.attn1"]
    # Every residual block and every attention block is covered.
    assert sum(name.endswith("conv2") for name in names) == 8
    assert sum(name.endswith("attn2") for name in names) == 4


@pytest.mark.parametrize(("kind", "level"), tiny.FAMILY_LEVELS.values(), ids=tiny.FAMILY_LEVELS)
def test_order_of_execution(kind: tiny.Family, level: str) -> None:
    pipe = kind.make()
    found = sites(kind.denoiser(pipe), level)
    called: list[str] = []
    handles = [site.owner.register_forward_hook(lambda *_, name=site.name: called.append(name)) for site in found]
    kind.run(pipe, steps=1)
    for handle in handles:
        handle.remove()
    assert called == [site.name for site in found]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_model_feature_and_every_other_block_idle(family: str) -> None:
    kind = tiny.FAMILIES[family]
    network = kind.denoiser(kind.make())
    (site,) = sites(network, "model")
    blocks = sites(network, "block")
    assert site.name == blocks[-1].name
    assert list(site.idle) == [block.owner for block in blocks[:-1]]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_levels_are_those_with_sites(family: str) -> None:
    kind = tiny.FAMILIES[family]
    assert levels(kind.denoiser(kind.make())) == list(kind.levels)
    assert levels(nn.Sequential(nn.Linear(2, 2))) == []


def test_names_lead_to_the_modules() -> None:
    network = tiny.unet()
    for level in LEVELS:
        assert all(network.get_submodule(site.name) is site.owner for site in sites(network, level))


def test_a_network_without_blocks_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no block site was found in Sequential.*pipe\.transformer or pipe\.unet"):
        sites(nn.Sequential(nn.Linear(2, 2)), "block")


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown level 'layer': choose one of sublayer, block, model, deep"):
        sites(tiny.unet(), "layer")


def test_finding_sites_changes_nothing() -> None:
    network = tiny.flux_transformer()
    before = {name: dict(vars(module)) for name, module in network.named_modules()}
    x = {name: value.clone() for name, value in network.state_dict().items()}
    sites(network, "sublayer")
    assert all(vars(module) == before[name] for name, module in network.named_modules())
    assert all(torch.equal(value, x[name]) for name, value in network.state_dict().items())
