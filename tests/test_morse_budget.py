"""Do budgets buy what the paper's arithmetic says, exactly, and is no budget ever exceeded?"""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffaccel.morse import bound, dash_index, exchange, latency_ratio, lsd, split, step_order
from diffaccel.morse.budget import dash_steps

CASES = json.loads((Path(__file__).parent / "oracles" / "morse.json").read_text())["cases"]


def cases(kind: str) -> Any:
    found = [case for case in CASES if case["kind"] == kind]
    return pytest.mark.parametrize("case", found, ids=[case["id"] for case in found])


@cases("budget")
def test_latency_and_bound_of_the_oracles(case: dict[str, str]) -> None:
    n, k_dash, k_dot = (Fraction(case[name]) for name in ("N", "k_dash", "k_dot"))
    assert k_dash + k_dot == Fraction(case["steps"])
    assert lsd(k_dash, k_dot, n) == Fraction(case["lsd"])
    assert bound(k_dash, k_dot, n) == Fraction(case["bound"])
    assert lsd(int(k_dash), int(k_dot), int(n)) == Fraction(case["lsd"])  # whole numbers stay exact, too


@cases("budget_inverse")
def test_exchanges_of_the_oracles(case: dict[str, str]) -> None:
    n, steps, wanted = (Fraction(case[name]) for name in ("N", "n", "bound"))
    k, dots_per_dash = exchange(n, steps, wanted)
    assert (k, dots_per_dash) == (Fraction(case["k"]), Fraction(case["dots_per_dash"]))
    # The exchanged run costs what the plain one does, and has the bound asked for.
    assert lsd(steps - k, n * k, n) == steps
    assert bound(steps - k, n * k, n) == wanted


@cases("order")
def test_orders_of_the_oracles(case: dict[str, Any]) -> None:
    assert step_order(case["k_dash"], case["k_dot"]) == case["order"]
    assert dash_index(case["k_dash"], case["k_dot"]) == case["dash_index"]


@cases("latency_ratio")
def test_ratios_of_the_oracles(case: dict[str, Any]) -> None:
    assert latency_ratio(case["dash_seconds"], case["dot_seconds"]) == pytest.approx(case["N"], rel=1e-12)


counts = st.integers(1, 60)
ratios = st.fractions(Fraction(11, 10), 12, max_denominator=40)


@given(k_dash=counts, k_dot=st.integers(0, 200))
def test_dash_runs_first_and_gaps_differ_by_one_at_most(k_dash: int, k_dot: int) -> None:
    order = step_order(k_dash, k_dot)
    assert order[0] == "D"
    assert (order.count("D"), order.count("d")) == (k_dash, k_dot)
    gaps = {len(dots) for dots in order[1:].split("D")}
    assert max(gaps) - min(gaps) <= 1


@given(lsd_wanted=st.fractions(1, 60, max_denominator=12), n=ratios, q=st.fractions(0, 8, max_denominator=12))
def test_a_split_never_costs_more_than_the_budget(lsd_wanted: Fraction, n: Fraction, q: Fraction) -> None:
    k_dash, k_dot = split(lsd_wanted, n, q)
    assert k_dash >= 1
    assert k_dot >= 0
    assert lsd(k_dash, k_dot, n) <= lsd_wanted
    assert k_dot < q * k_dash + 1
    # A Dash step more, with its share of Dot steps, would not fit.
    assert (k_dash + 1) * (1 + q / n) > lsd_wanted


@given(lsd_wanted=st.fractions(1, 60, max_denominator=12), n=ratios, q=st.fractions(0, 8, max_denominator=12))
def test_floats_split_as_fractions_do(lsd_wanted: Fraction, n: Fraction, q: Fraction) -> None:
    """Rounding must not cost a step where a budget comes out even."""
    assert split(float(lsd_wanted), float(n), float(q)) == split(lsd_wanted, n, q)


@given(k_dash=counts, k_dot=counts, n=ratios)
def test_dash_steps_of_a_budget_that_a_run_meets(k_dash: int, k_dot: int, n: Fraction) -> None:
    assert dash_steps(lsd(k_dash, k_dot, n), k_dash + k_dot, n) == k_dash


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: exchange(2.4, 10, 2.5), r"N = 2\.4"),
        (lambda: exchange(Fraction(3), 10, 3), "N = 3"),
        (lambda: exchange(5, 10, 0.5), "at least 1"),
        (lambda: split(0.9, 5, 2), "at least 1"),
        (lambda: split(5, 5, -1), "at least 0"),
        (lambda: dash_index(0, 3), "Dash step first"),
        (lambda: step_order(2, -1), "fewer than 0"),
        (lambda: lsd(1, 1, 0), "N must be positive"),
        (lambda: latency_ratio(1.0, 0.0), "positive"),
        (lambda: dash_steps(5, 10, 0.9), r"N = 0\.9"),
    ],
)
def test_what_cannot_be(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_budgets_need_no_torch() -> None:
    code = "import sys, diffaccel.morse as m; assert m.step_order(2, 4) == 'DddDdd'; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
