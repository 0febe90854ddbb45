"""Is a new Dot zero, does it see all it is given, and does it say what it cannot do?"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

from diffaccel.morse.dot import KINDS, MorseDot
from diffaccel.morse.sharing import config_of
from tests import tiny
from tests.morse_networks import NETWORKS, SMALL, Network, grid, unet2d, woken

CASES = list(itertools.product(NETWORKS, KINDS))


@functools.cache
def awake(name: str, kind: str) -> MorseDot:
    """A Dot of a toy network that returns something; for tests that leave it as it is."""
    return woken(MorseDot.of(NETWORKS[name].make(), kind=kind, **SMALL))


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("m", [0, 1])
def test_a_new_dot_returns_exactly_zero(name: str, kind: str, m: int) -> None:
    network = NETWORKS[name]
    asked = network.asked()
    residual = asked.of(MorseDot.of(network.make(), kind=kind, **SMALL | {"m": m}))
    assert torch.equal(residual, torch.zeros_like(asked.k_s))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_each_input_alone_changes_what_it_returns(name: str, kind: str) -> None:
    network = NETWORKS[name]
    asked, dot = network.asked(), awake(name, kind)
    changes: dict[str, Any] = {"x": asked.x + 1, "x_s": asked.x_s + 1, "k_s": asked.k_s + 1}
    changes |= {"t": asked.t * 0.7, "t_s": asked.t_s * 0.7}
    if "encoder_hidden_states" in asked.conditioning:
        more = asked.conditioning["encoder_hidden_states"] + 1
        changes["conditioning"] = asked.conditioning | {"encoder_hidden_states": more}
    with torch.no_grad():
        before = asked.of(dot)
        for change, value in changes.items():
            after = replace(asked, **{change: value}).of(dot)
            assert float((after - before).abs().max()) > 1e-4 * float(before.abs().max()), change


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_batch_equals_its_single_runs(name: str, kind: str) -> None:
    network, dot = NETWORKS[name], awake(name, kind)
    with torch.no_grad():
        batch = network.asked(batch=3).of(dot)
        for i in range(3):
            alone = network.asked(batch=3, pick=i).of(dot)[0]
            assert float((alone - batch[i]).norm() / batch[i].norm()) < 1e-5


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_autocast_changes_little(name: str, kind: str) -> None:
    network = NETWORKS[name]
    asked, dot = network.asked(), awake(name, kind)
    with torch.no_grad():
        exact = asked.of(dot)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = asked.of(dot).float()
    assert float((rounded - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_times_may_be_numbers(name: str) -> None:
    network = NETWORKS[name]
    asked, dot = network.asked(), awake(name, "shared")
    with torch.no_grad():
        plain = dot(asked.x, float(asked.t[0]), asked.x_s, asked.k_s, asked.t_s[0], asked.conditioning)
        assert torch.equal(plain, asked.of(dot))


def test_of_a_learned_variance_only_the_estimate_is_corrected() -> None:
    network = unet2d(in_channels=3, out_channels=6)
    asked = Network(unet2d, (3, 16, 16), (400.0, 500.0), {}).asked()
    assert asked.of(MorseDot.of(network, **SMALL)).shape == (2, 3, 16, 16)


def test_tokens_of_a_picture_that_is_no_square() -> None:
    asked, dot = NETWORKS["flux"].asked(), awake("flux", "shared")
    asked.conditioning["img_ids"] = grid(2, 8)
    wide = asked.of(dot)
    asked.conditioning["img_ids"] = grid(4, 4)
    assert not torch.allclose(wide, asked.of(dot))


@pytest.mark.parametrize(("blocks", "count"), [((0,), 0), ((0, 1), 0), ((0, 2, 3), 2)])
def test_blocks_are_counted_over_both_lists(blocks: tuple[int, ...], count: int) -> None:
    network = tiny.flux_transformer()
    dot = woken(MorseDot.of(network, blocks=blocks, **SMALL))
    assert len(dot.body.transformer_blocks) == len(blocks) - count
    kept = [*network.transformer_blocks, *network.single_transformer_blocks]
    mine = [*dot.body.transformer_blocks, *dot.body.single_transformer_blocks]
    for index, block in zip(blocks, mine, strict=True):
        assert block.attn.to_q.base_layer.weight is kept[index].attn.to_q.weight
    assert bool(NETWORKS["flux"].asked().of(dot).any())


def test_new_layers_are_as_many_as_counted_by_hand() -> None:
    dot = MorseDot.of(tiny.unet(), **SMALL)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in dot.named_children()}
    residual = 16 + 584 + (64 * 8 + 8) + 16 + 584  # norm, convolution, time, norm, convolution
    wider = 32 + (16 * 8 * 9 + 8) + (64 * 8 + 8) + 16 + 584 + (16 * 8 + 8)  # and a shortcut
    assert count["entry"] == (12 * 8 * 9 + 8) + residual + (8 * 16 * 9 + 16)
    assert count["exit"] == (16 * 8 * 16 + 8) + wider + 16 + (8 * 4 * 9 + 4)
    assert count["time"] == (2 * 64 * 64 + 64) + (64 * 64 + 64)


def test_adapters_of_stable_diffusion_are_those_of_the_facts() -> None:
    """67.73 M with rank 64 on all layers of SD 1.4; the first and the last layer are replaced here."""
    with torch.device("meta"):
        network = UNet2DConditionModel(cross_attention_dim=768)
    dot = MorseDot("UNet2DConditionModel", config_of(network))
    replaced = 64 * (4 * 9 + 320) + 64 * (320 * 9 + 4)
    adapters = sum(parameter.numel() for parameter in dot.adapters.parameters())
    assert round((adapters + replaced) / 1e6, 2) == 67.73


@pytest.mark.parametrize(("sides", "sizes"), [((10, 16), "8x16 and 12x16"), ((3, 3), "4x4")])
def test_a_size_that_cannot_be_divided_is_refused_with_the_next(sides: tuple[int, int], sizes: str) -> None:
    asked = Network(tiny.unet, (4, *sides), (400.0, 500.0), NETWORKS["sd"].conditioning).asked()
    with pytest.raises(ValueError, match=f"divided by 4, not {sides[0]}x{sides[1]}.*{sizes}"):
        asked.of(awake("sd", "shared"))


def test_tokens_of_several_pictures_are_refused() -> None:
    asked = NETWORKS["flux"].asked()
    asked.conditioning["img_ids"][8:, 0] = 1
    with pytest.raises(ValueError, match="one picture"):
        asked.of(awake("flux", "shared"))


def test_features_of_a_controlnet_are_refused() -> None:
    asked = NETWORKS["sd"].asked()
    asked.conditioning["mid_block_additional_residual"] = torch.zeros(2, 32, 4, 4)
    with pytest.raises(ValueError, match="mid_block_additional_residual"):
        asked.of(awake("sd", "shared"))


def test_a_class_without_known_ends_is_refused() -> None:
    with torch.device("meta"):
        network = PixArtTransformer2DModel(num_layers=1, num_attention_heads=1, cross_attention_dim=72)
    with pytest.raises(ValueError, match=r"PixArtTransformer2DModel.*independent.*UNet2DModel"):
        MorseDot.of(network)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "own"}, "kind must be one of shared, independent"),
        ({"m": -1}, "must not be negative"),
        ({"residual_space": "x0"}, "residual_space must be"),
        ({"widths": (8,), "m": 2}, "2 new levels"),
        ({"blocks": (0,)}, "blocks: no block can be left out of UNet2DConditionModel"),
        ({"body_config": {"layers_per_block": 2}}, "for kind='independent'"),
        ({"kind": "independent", "blocks": (0,)}, "for kind='shared'"),
        ({"kind": "independent", "body_config": {"depth": 2}}, "UNet2DConditionModel has no depth"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MorseDot.of(tiny.unet(), **SMALL | options)


@pytest.mark.parametrize(
    ("make", "blocks", "said"),
    [
        (tiny.flux_transformer, (0, 4), "from 0 to 3"),
        (tiny.flux_transformer, (1, 0), "rising"),
        (tiny.flux_transformer, (2, 3), "none of transformer_blocks"),
        (NETWORKS["sd3"].make, (0,), "last block"),
    ],
)
def test_blocks_that_cannot_be_kept_alone_are_refused(make: Any, blocks: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MorseDot.of(make(), blocks=blocks, **SMALL)
