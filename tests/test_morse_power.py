"""What share of a change a Dot explains, by gap and by time; and pairs as batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffaccel.morse.pairs import Pair, join, take
from diffaccel.morse.power import Power


def _pair(t_s: list[float], t: list[float], change: list[float], **conditioning: object) -> Pair:
    size = len(t)
    k_s = torch.arange(float(size)).view(-1, 1, 1, 1).expand(-1, 2, 3, 3)
    k = k_s + torch.tensor(change).view(-1, 1, 1, 1)
    x = torch.zeros_like(k_s)
    return Pair(x, torch.tensor(t), x, k_s, torch.tensor(t_s), k_s, k, dict(conditioning))


def _column(values: list[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 2, 3, 3)


def test_a_dot_that_says_half_of_the_change_explains_three_quarters_of_its_power() -> None:
    power = Power(1000)
    pair = _pair([900.0, 500.0], [800.0, 100.0], [2.0, 4.0])
    power.add(pair, _column([1.0, 2.0]))
    assert power.explained() == pytest.approx(0.75)
    assert [one.explained for one in power.by_gap()] == pytest.approx([0.75, 0.75])


def test_silence_explains_nothing_and_the_wrong_sign_does_harm() -> None:
    pair = _pair([900.0], [800.0], [2.0])
    for said, explained in ((0.0, 0.0), (2.0, 1.0), (-2.0, -3.0)):
        power = Power(1000)
        power.add(pair, _column([said]))
        assert power.explained() == pytest.approx(explained)


def test_bins_are_those_of_gap_and_of_the_time_of_arrival() -> None:
    power = Power(1000, gaps=(0, 0.1, 0.5, 1), times=(0, 0.3, 1))
    pair = _pair([950.0, 950.0, 250.0], [900.0, 600.0, 200.0], [1.0, 2.0, 3.0])
    power.add(pair, _column([1.0, 0.0, 0.0]))
    found = {(one.gap, one.time): (one.count, one.change, one.explained) for one in power.table()}
    assert found == {
        ((0, 0.1), (0, 0.3)): (1, 9.0, 0.0),
        ((0, 0.1), (0.3, 1)): (1, 1.0, 1.0),
        ((0.1, 0.5), (0.3, 1)): (1, 4.0, 0.0),
    }
    short, long = power.by_gap()
    assert (short.count, short.change, short.left) == (2, 5.0, 4.5)
    assert long.count == 1


def test_the_usual_change_of_a_gap_is_its_mean_and_one_where_nothing_was_seen() -> None:
    power = Power(1000, gaps=(0, 0.1, 0.5, 1))
    power.add(_pair([950.0, 850.0], [900.0, 800.0], [1.0, 3.0]), _column([0.0, 0.0]))
    asked = _pair([550.0, 900.0], [500.0, 100.0], [0.0, 0.0])
    assert power.change(asked, by_time=False).tolist() == [5.0, 1.0]


def test_the_usual_change_of_a_bin_is_that_of_its_time_too() -> None:
    power = Power(1000, gaps=(0, 0.1, 0.5, 1), times=(0, 0.5, 1))
    power.add(_pair([950.0, 150.0], [900.0, 100.0], [1.0, 3.0]), _column([0.0, 0.0]))
    power.fade(0.5)  # the mean of what was seen stays
    asked = _pair([650.0, 250.0, 900.0], [600.0, 200.0, 100.0], [0.0, 0.0, 0.0])
    assert power.change(asked, by_time=True).tolist() == [1.0, 9.0, 1.0]


def test_what_fades_counts_less_and_a_state_comes_back() -> None:
    power, again = Power(1000), Power(1000)
    power.add(_pair([900.0], [800.0], [1.0]), _column([0.0]))
    power.fade(0.5)
    power.add(_pair([900.0], [800.0], [1.0]), _column([1.0]))
    assert power.explained() == pytest.approx(1 - 0.5 / 1.5)
    again.load_state_dict(power.state_dict())
    assert again.table() == power.table()


def test_joined_pairs_hold_all_rows_and_share_what_is_of_positions() -> None:
    ids = torch.arange(2.0)  # as many rows as samples, by chance
    first = _pair([900.0, 800.0], [700.0, 600.0], [1.0, 2.0], text=torch.tensor([1, 2]), img_ids=ids, scale=2.5)
    second = _pair([500.0, 400.0], [300.0, 200.0], [3.0, 4.0], text=torch.tensor([3, 4]), img_ids=ids, scale=2.5)
    both = join([first, second])
    assert both.t.tolist() == [700.0, 600.0, 300.0, 200.0]
    assert both.conditioning["text"].tolist() == [1, 2, 3, 4]
    assert both.conditioning["img_ids"] is ids
    assert both.conditioning["scale"] == 2.5
    some = take(both, torch.tensor([3, 0]))
    assert some.t_s.tolist() == [400.0, 900.0]
    assert some.conditioning["text"].tolist() == [4, 1]
    assert torch.equal(some.k - some.base, _column([4.0, 1.0]))


def test_nothing_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="no pair"):
        join([])
