"""Guidance in all its forms: histories of branches never mix, whatever the order and number of calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from diffaccel import METHODS, accelerate, accelerate_pipeline
from diffaccel.calls import Branches
from tests import tiny

STEPS = 12
TEXTS = {name: torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("cup")}


def latents(step: int) -> Tensor:
    """Inputs that move along a curve."""
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)) * (1 + 0.1 * step + 0.01 * step**2)


def run(order: Sequence[str], anew: bool = False) -> dict[str, dict[int, Tensor]]:
    """Outputs of an accelerated UNet, by branch and step; `order[step]` lists the branches called, one letter each.

    With `anew` the conditioning is another tensor of the same values at each call, so that only order can tell.
    """
    network, outputs = tiny.unet(), {name: {} for name in TEXTS}
    with accelerate(network, "taylorseer", steps=STEPS, interval=4, order=1):
        for step, names in enumerate(order):
            for name in names:
                text = TEXTS[name].clone() if anew else TEXTS[name]
                outputs[name][step] = network(latents(step), 900 - 50 * step, encoder_hidden_states=text)[0]
                del text
    return outputs


def alone(name: str, steps: Sequence[int]) -> dict[int, Tensor]:
    """The outputs of one branch in a network of its own."""
    return run(["" if step not in steps else name for step in range(STEPS)])[name]


def same(found: dict[int, Tensor], expected: dict[int, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[step], expected[step]) for step in found)


@pytest.mark.parametrize("anew", [False, True], ids=["tensors kept", "tensors made anew"])
@pytest.mark.parametrize("names", ["c", "cu", "cup"], ids=["off", "on", "three-way"])
def test_each_branch_is_as_if_it_were_alone(names: str, anew: bool) -> None:
    outputs = run([names] * STEPS, anew)
    for name in names:
        assert same(outputs[name], run([name] * STEPS)[name])


@pytest.mark.parametrize("both", ["cu", "uc"], ids=["conditional first", "unconditional first"])
@pytest.mark.parametrize("interval", [(0, 5), (3, 9), (6, 12)], ids=["ends", "limited", "begins"])
def test_guidance_in_an_interval(both: str, interval: tuple[int, int]) -> None:
    """The conditional branch never notices; the other one begins a history where guidance begins."""
    outputs = run([both if interval[0] <= step < interval[1] else "c" for step in range(STEPS)])
    assert same(outputs["c"], run(["c"] * STEPS)["c"])
    network = tiny.unet()
    first = interval[0]
    with accelerate(network, "taylorseer", steps=STEPS - first, interval=4, order=1):
        fresh = [network(latents(s), 900 - 50 * s, TEXTS["u"])[0] for s in range(first, interval[1])]
    # Its warm-up is that of a run that begins there; later steps are computed where the plan of the whole run says.
    assert all(torch.equal(outputs["u"][first + i], fresh[i]) for i in range(3))
    assert sorted(outputs["u"]) == list(range(*interval))


def test_branches_that_change_places() -> None:
    outputs = run(["cu" if step % 3 else "uc" for step in range(STEPS)])
    for name in "cu":
        assert same(outputs[name], run([name] * STEPS)[name])


def test_one_prompt_for_two_calls_of_a_step() -> None:
    """Perturbed guidance calls the network twice with one prompt: then order tells the calls apart."""
    branches, kept = Branches(), torch.zeros(1)
    seen = []
    for _ in range(3):
        seen.append([branches.name(None, kept), branches.name(None, kept)])
        branches.next_step()
    assert seen == [["call 0", "call 1"]] * 3


def test_announced_names_come_first() -> None:
    branches, kept = Branches(), torch.zeros(1)
    assert branches.name("cond", kept) == "cond"
    assert branches.name("uncond", kept) == "uncond"
    branches.next_step()
    assert branches.name("uncond", kept) == "uncond"


@pytest.mark.parametrize("method", ["taylorseer", "first_block"])
def test_flux_with_and_without_guidance_in_turn(method: str) -> None:
    assert method in METHODS
    options: dict[str, Any] = {"interval": 3} if method == "taylorseer" else {"threshold": 0.3}
    pipe = accelerate_pipeline(tiny.flux(), method, **options)
    plain, guided = tiny.run_flux(pipe), tiny.run_flux(pipe, guidance=True)
    assert list(pipe.acceleration.report().sites[0].computed) == ["cond", "uncond"]
    assert torch.equal(tiny.run_flux(pipe), plain)
    assert torch.equal(tiny.run_flux(pipe, guidance=True), guided)


@pytest.mark.parametrize("at", [3, 4, 6])
def test_another_number_of_tokens_begins_a_history(at: int) -> None:
    """From step `at` on the prompt is longer: outputs are those of a network that only ever saw the longer one."""
    longer = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(5))
    network = tiny.unet()
    with accelerate(network, "taylorseer", steps=STEPS, interval=20, order=1) as acceleration:
        outputs = [
            network(latents(step), 900 - 50 * step, TEXTS["c"] if step < at else longer)[0] for step in range(STEPS)
        ]
        # Three steps of warm-up for each history.
        assert sum(acceleration.report().sites[0].computed.values()) == 6
    with accelerate(network, "taylorseer", steps=STEPS - at, interval=20, order=1):
        fresh = [network(latents(step), 900 - 50 * step, longer)[0] for step in range(at, STEPS)]
    assert all(torch.equal(a, b) for a, b in zip(outputs[at:], fresh, strict=True))
