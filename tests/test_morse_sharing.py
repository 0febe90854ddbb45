"""Are the weights of a shared Dot Dash's own, does training leave Dash alone, and is only what is new saved?"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

from diffaccel.morse.dot import KINDS, MorseDot
from diffaccel.morse.sharing import digest, same_weights
from tests import tiny
from tests.morse_networks import NETWORKS, SMALL, Network, unet2d, woken

# The text's queries in the last block of SD3, which nothing reads.
IDLE = re.compile(r"transformer_blocks.1.attn.add_q_proj")


def bare(name: str) -> str:
    """Name of a weight of a body, as Dash calls it."""
    return name.replace(".base_layer.", ".").replace("embedding.embedding.", "embedding.")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_below_the_ends_is_dashs_own_object(name: str) -> None:
    dash = NETWORKS[name].make()
    dot = MorseDot.of(dash, **SMALL)
    theirs = {id(parameter): key for key, parameter in dash.named_parameters()}
    mine = {id(parameter) for parameter in dot.parameters()}
    body = dict(dot.body.named_parameters())
    shared = [theirs[id(parameter)] for parameter in body.values() if id(parameter) not in mine]
    ends = {key for key in theirs.values() if key.startswith(dot._family.ends)}
    assert sorted(shared) == sorted(set(theirs.values()) - ends)
    assert not mine & set(theirs)
    # Blocks hold what the block of the same name holds in Dash.
    blocks = {bare(key): parameter for key, parameter in body.items() if "blocks.0." in key and "lora_" not in key}
    assert blocks
    for key, parameter in blocks.items():
        key = key.replace("timestep_embedder.embedding.", "timestep_embedder.")
        assert parameter is dash.get_parameter(key)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_training_reaches_all_that_is_new_and_leaves_dash_as_it_was(name: str, kind: str) -> None:
    network = NETWORKS[name]
    dash, asked = network.make().requires_grad_(True), network.asked()
    before = {key: value.clone() for key, value in dash.state_dict().items()}
    dot = woken(MorseDot.of(dash, kind=kind, **SMALL)).train()
    optimizer = torch.optim.AdamW(dot.parameters(), lr=1e-3)
    old = {key: parameter.detach().clone() for key, parameter in dot.named_parameters()}
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (asked.of(dot) - asked.k_s).square().mean()
        loss.backward()
        losses.append(loss.item())
        idle = {key for key, parameter in dot.named_parameters() if parameter.grad is None or not parameter.grad.any()}
        assert {key for key in idle if not IDLE.search(key)} == set()
        optimizer.step()
    assert losses[2] < losses[0]
    assert {key for key, parameter in dot.named_parameters() if torch.equal(old[key], parameter)} <= idle
    assert all(torch.equal(before[key], value) for key, value in dash.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in dash.parameters())


def test_the_first_steps_of_a_new_dot_wake_all_of_it() -> None:
    network = NETWORKS["sd"]
    asked, dot = network.asked(), MorseDot.of(network.make(), **SMALL)
    old = {key: parameter.detach().clone() for key, parameter in dot.named_parameters()}
    optimizer = torch.optim.AdamW(dot.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(4):
        optimizer.zero_grad()
        (asked.of(dot) - asked.k_s).square().mean().backward()
        optimizer.step()
    assert [key for key, parameter in dot.named_parameters() if torch.equal(old[key], parameter)] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_dot_holds_what_is_new_and_says_the_same(name: str, kind: str, tmp_path: Path) -> None:
    network = NETWORKS[name]
    dash, asked = network.make(), network.asked()
    dot = woken(MorseDot.of(dash, kind=kind, guided=True, **SMALL))
    dot.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert sum(value.numel() for value in saved.values()) == sum(p.numel() for p in dot.parameters()) + sum(
        b.numel() for key, b in dot.named_buffers() if key in dot.state_dict()
    )
    if kind == "shared":
        assert {key.split(".")[0] for key in saved} == {"entry", "exit", "time", "adapters"}
        assert not set(saved) & set(dash.state_dict())
    again = MorseDot.from_pretrained(tmp_path)
    assert again.config.guided
    assert again.config.base_class == type(dash).__name__
    again.attach(dash)
    with torch.no_grad():
        assert torch.equal(asked.of(again), asked.of(dot))


def test_a_dot_is_loaded_in_the_dtype_asked_for_and_takes_that_of_dash(tmp_path: Path) -> None:
    network = NETWORKS["sd"]
    dash = network.make().to(torch.bfloat16)
    woken(MorseDot.of(dash, **SMALL)).save_pretrained(tmp_path)
    again = MorseDot.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert again.dtype == torch.float32
    again.attach(dash)
    assert again.dtype == torch.bfloat16
    assert network.asked(dtype=torch.bfloat16).of(again).dtype == torch.bfloat16


def test_before_it_is_attached_only_an_independent_dot_runs(tmp_path: Path) -> None:
    network = NETWORKS["sd"]
    for kind in KINDS:
        MorseDot.of(network.make(), kind=kind, **SMALL).save_pretrained(tmp_path / kind)
    network.asked().of(MorseDot.from_pretrained(tmp_path / "independent"))
    with pytest.raises(ValueError, match=r"dot\.attach\(network\) first"):
        network.asked().of(MorseDot.from_pretrained(tmp_path / "shared"))


def test_what_happens_to_dash_is_seen_by_the_dot() -> None:
    network = NETWORKS["sd3"]  # it has a buffer, which a cast replaces
    dash = network.make()
    dot = woken(MorseDot.of(dash, **SMALL))
    before = network.asked().of(dot)
    with torch.no_grad():
        dash.transformer_blocks[0].attn.to_q.weight.mul_(2)
    assert not torch.allclose(network.asked().of(dot), before)
    dash.double()
    assert dot._notes.patches.pos_embed is dash.pos_embed.pos_embed
    assert dot.body.transformer_blocks[0].attn.to_q.base_layer.weight.dtype == torch.float64
    new = nn.Parameter(torch.zeros_like(dash.context_embedder.weight))
    dash.context_embedder.weight = new
    assert dot.body.context_embedder.base_layer.weight is new


@pytest.mark.parametrize("loaded_first", [True, False])
def test_a_lora_on_dash_stays_out_of_the_dot(loaded_first: bool) -> None:
    network = NETWORKS["sd"]
    asked, dash = network.asked(), network.make()
    plain: Any = woken(MorseDot.of(network.make(), **SMALL))
    lora = LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False)
    if loaded_first:
        dash.add_adapter(lora)
    dot = MorseDot.of(dash, **SMALL)
    dot.load_state_dict(plain.state_dict())
    if not loaded_first:
        dash.add_adapter(lora)
    dot.attach(dash)  # the digest is of the weights below the adapter
    asked.conditioning["cross_attention_kwargs"] = {"scale": 0.3}  # of Dash's adapter, not of the Dot's
    with torch.no_grad():
        said = asked.of(dot)
        del asked.conditioning["cross_attention_kwargs"]
        assert torch.equal(said, asked.of(plain))
        x = {"sample": asked.x, "timestep": asked.t, **asked.conditioning, "return_dict": False}
        assert not torch.allclose(dash(**x)[0], network.make()(**x)[0])
    assert sum("lora" in key for key, _ in dash.named_parameters()) > 0
    assert not any(parameter is own for own in dot.parameters() for parameter in dash.parameters())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: unet2d(), "not for UNet2DModel"),
        (lambda: tiny.unet(sample_size=32), "another config: sample_size differ"),
        (lambda: tiny.unet(seed=1), "other weights"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_another_network_is_refused(other: Any, said: str, kind: str) -> None:
    with pytest.raises(ValueError, match=said):
        MorseDot.of(tiny.unet(), kind=kind, **SMALL).attach(other())


@pytest.mark.parametrize("other", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
def test_one_network_in_two_precisions_is_the_same(other: torch.dtype, turned: bool) -> None:
    made, used = (other, torch.float32) if turned else (torch.float32, other)
    mine, theirs = (digest(nn.Module.to(tiny.unet(), dtype)) for dtype in (made, used))
    assert same_weights(mine, theirs)
    assert not same_weights(mine, digest(nn.Module.to(tiny.unet(seed=1), used)))


def test_weights_out_of_reach_are_refused() -> None:
    dash = tiny.unet()
    dot = MorseDot.of(dash, **SMALL)
    with pytest.raises(ValueError, match="offloaded"):
        dot.attach(dash.to("meta"))


def test_a_layer_of_another_class_is_refused() -> None:
    class Quantized(nn.Linear):
        pass

    dash = tiny.unet()
    dash.time_embedding.linear_1 = Quantized(16, 64)
    with pytest.raises(ValueError, match=r"time_embedding\.linear_1 .* is Quantized, not Linear"):
        MorseDot.of(dash, **SMALL)


def test_labels_are_not_dropped_in_training() -> None:
    network = NETWORKS["dit"]
    asked = network.asked(batch=8)
    dot = woken(MorseDot.of(network.make(), kind="independent", **SMALL)).train()
    assert torch.equal(asked.of(dot), asked.of(dot))


def test_a_body_smaller_than_dash() -> None:
    network = Network(unet2d, (1, 16, 16), (400.0, 500.0), {})
    dash = network.make()
    small = MorseDot.of(dash, kind="independent", m=0, body_config={"block_out_channels": (4, 8)})
    count = math.prod(small.body.down_blocks[0].resnets[0].conv1.weight.shape)
    assert count == 4 * 4 * 9
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dash.parameters())
    assert not network.asked().of(small).any()
