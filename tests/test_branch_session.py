"""Does the runtime of block-wise caching add what a slow implementation by hand adds, in every kind of layer?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffaccel import accelerate
from tests.block_reference import CASES, STEPS, Case, Planned, Rows, drawn
from tests.policy_transformers import TransformerBlock
from tests.test_branch_promises import count, planned

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
orders = pytest.mark.parametrize("order", [0, 1], ids=["reuse", "line"])


def accelerated(case: Case, rows: Rows, order: int = 0) -> Tensor:
    """Outputs with the runtime of diffaccel."""
    network = case.make()
    with accelerate(network, Planned(rows, order), steps=STEPS):
        return case.run(network)


@cases
@orders
def test_any_plan_adds_what_is_added_by_hand(case: Case, order: int) -> None:
    for seed in (0, 1) if case is CASES["unet"] else range(3):
        rows = drawn(case.names(), seed)
        # Idle modules return NaN, and layers that are passed by add up in another order.
        torch.testing.assert_close(accelerated(case, rows, order), case.by_hand(rows, order), rtol=2e-5, atol=2e-5)


@cases
@orders
def test_every_bit_is_equal_where_no_layer_is_passed_by(case: Case, order: int) -> None:
    for always in ("sa",) if order else ("sa", "ffn"):
        rows = drawn(case.names(), 3, always)
        expected = case.by_hand(rows, order)
        found = accelerated(case, rows, order)
        if order:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(found, expected)


@cases
def test_computing_everything_changes_no_bit(case: Case) -> None:
    rows = dict.fromkeys(case.names(), range(STEPS))
    assert torch.equal(accelerated(case, rows, order=1), case.by_hand(rows))


@cases
def test_one_update_adds_what_the_first_call_added(case: Case) -> None:
    rows = dict.fromkeys(case.names(), (0,))
    expected = case.by_hand(rows)
    torch.testing.assert_close(accelerated(case, rows), expected, rtol=1e-5, atol=1e-5)
    # A line through one point is flat.
    torch.testing.assert_close(accelerated(case, rows, order=1), expected, rtol=1e-5, atol=1e-5)


class Scaled(TransformerBlock):
    """A block that adds less than its branches say, so that the sum of them is not what it adds."""

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return x + 0.5 * (super().forward(x, features) - x)


class Listing(TransformerBlock):
    """A block that returns more than the stream."""

    def forward(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x[0] if isinstance(x, tuple) else x, features), features


@pytest.mark.parametrize("kind", [Scaled, Listing])
def test_a_layer_that_does_more_than_add_is_not_passed_by(kind: type[TransformerBlock]) -> None:
    case = CASES["dit-rotary"]
    network = case.make()
    for block in network.transformer_blocks:
        block.__class__ = kind
    network.transformer_blocks[-1].__class__ = Scaled if kind is Scaled else TransformerBlock
    if kind is Listing:
        network.transformer_blocks[-1].register_forward_pre_hook(lambda _, given: (given[0][0], given[1]))
    for runs in (1, 2):  # what was found out in the first run holds in the next
        calls = count(network, "transformer_blocks.0", "transformer_blocks.0.adaLN_modulation")
        with accelerate(network, planned(case), steps=STEPS):
            for _ in range(runs):
                found = case.run(network)
        assert calls == {"transformer_blocks.0": runs * STEPS, "transformer_blocks.0.adaLN_modulation": runs}
        x = case.run(network)
        assert torch.equal(found[0], x[0])
        assert not torch.allclose(found[1:], x[1:], rtol=1e-3)


def test_a_long_line_is_as_exact_as_short_numbers_allow() -> None:
    """Differences of outputs that are nearly equal are not worked out in bfloat16."""
    steps, rows = 60, dict.fromkeys(CASES["rdt"].names(), (0, 20))
    blocks = CASES["rdt"].make().blocks
    one, other = torch.randn(2, 1, 9, 32, generator=torch.Generator().manual_seed(0))

    class Chain(nn.Module):
        """Blocks by themselves."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks

        def forward(self, x: Tensor, t: float) -> Tensor:
            for block in self.blocks:
                x = block(x, x[:, :5])
            return x - 0 * t

    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        network = Chain().to(dtype)
        with accelerate(network, Planned(rows, order=1), steps=steps), torch.no_grad():
            found = [network((one + 0.01 * step * other).to(dtype), float(-step)) for step in range(steps)]
        outputs.append(torch.stack(found).float())
    exact, rough = outputs
    error = (rough - exact).abs().mean((1, 2, 3)) / exact.abs().mean()
    assert error[59] < 4 * error[20]
