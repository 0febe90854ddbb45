"""Are the weights of forecasts that follow the sample the regression's, and is the best plan the best of all?"""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from diffaccel.fingerprint import Fingerprint
from diffaccel.innovation import Statistics, best_plan, moments, regression

Array = npt.NDArray[np.float64]
STEPS = 6
MARK = Fingerprint("Network", "c", "w", "DDPMScheduler", "s", STEPS, "output")


def series(seed: int, numbers: int = 500) -> tuple[Array, Array]:
    """Outputs and samples of shape (STEPS, numbers), each correlated with those before it."""
    made = torch.randn(2, STEPS, numbers, generator=torch.Generator().manual_seed(seed)).double()
    samples = made[0].cumsum(0)
    outputs = 0.7 * samples + made[1].cumsum(0)
    return outputs.numpy(), samples.numpy()


def gram(outputs: Array, samples: Array) -> Array:
    return moments(torch.from_numpy(outputs), torch.from_numpy(samples))


def statistics(seed: int = 0) -> Statistics:
    responses = (0.1, 0.5, -0.3, 0.8, 0.2, 1.1)
    return Statistics(gram(*series(seed)), responses, MARK, 3)


def explicit(outputs: Array, samples: Array, anchors: tuple[int, ...], t: int, ridge: float = 0.0) -> Array:
    """Weights by least squares on the regressors themselves; a ridge is a row more for each."""
    regressors = np.stack([*(outputs[a] for a in anchors), *(samples[a] for a in anchors), samples[t]], axis=1)
    rows = np.diag(np.sqrt(ridge * (regressors**2).sum(0)))
    target = np.concatenate([outputs[t], np.zeros(len(rows))])
    return np.asarray(np.linalg.lstsq(np.concatenate([regressors, rows]), target, rcond=None)[0])


@pytest.mark.parametrize(("anchors", "t"), [((0,), 1), ((2,), 5), ((3, 1), 5), ((4, 3), 5)])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.1])
def test_weights_are_those_of_least_squares_on_the_regressors(anchors: tuple[int, ...], t: int, ridge: float) -> None:
    outputs, samples = series(1)
    found = regression(gram(outputs, samples), anchors, t, ridge)
    expected = explicit(outputs, samples, anchors, t, ridge)
    n = len(anchors)
    assert found.outputs == pytest.approx(expected[:n], abs=1e-6)
    assert found.samples == pytest.approx(expected[n : 2 * n], abs=1e-6)
    assert found.now == pytest.approx(expected[2 * n], abs=1e-6)


def test_the_gram_is_the_mean_over_all_numbers_whatever_their_shape() -> None:
    outputs, samples = torch.randn(4, 2, 3, 5), torch.randn(4, 2, 3, 5)
    found = moments(outputs, samples)
    assert found.shape == (8, 8)
    assert found[1, 2] == pytest.approx(float((outputs[1] * outputs[2]).mean()), rel=1e-5)
    assert found[3, 4 + 2] == pytest.approx(float((outputs[3] * samples[2]).mean()), rel=1e-5)
    assert found[4, 7] == pytest.approx(float((samples[0] * samples[3]).mean()), rel=1e-5)
    assert np.array_equal(found, found.T)


def test_sums_of_many_half_precision_numbers_keep_their_digits() -> None:
    outputs = torch.full((1, 300_000), 300.0, dtype=torch.float16)  # whose squares no half can hold
    assert moments(outputs, outputs).tolist() == [[90_000.0] * 2] * 2


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_regressors_that_depend_on_each_other_do_no_harm(ridge: float) -> None:
    """Samplers without noise make the sample of what was before it; and some networks return nothing at first."""
    outputs, samples = series(2)
    samples[3] = (0.9 * samples[2] - 0.4 * outputs[2]).astype(np.float32)
    outputs[1] = 0.0
    table = gram(outputs, samples)
    for a, t, independent in ((2, 3, (outputs[2], samples[2])), (1, 2, (samples[1], samples[2]))):
        found = regression(table, (a,), t, ridge)
        forecast = found.outputs[0] * outputs[a] + found.samples[0] * samples[a] + found.now * samples[t]
        best = explicit_fit(np.stack(independent, axis=1), outputs[t])
        assert np.abs(forecast - best).max() < 1e-4 * np.abs(best).max()
        assert np.abs([*found.outputs, *found.samples, found.now]).max() < 10


def explicit_fit(regressors: Array, target: Array) -> Array:
    return np.asarray(regressors @ np.linalg.lstsq(regressors, target, rcond=None)[0])


def moved(outputs: Array, samples: Array, responses: tuple[float, ...], begin: int, end: int) -> float:
    """Mean square of what the result moves by if step `begin` is computed and those up to `end` are forecast."""
    total = np.zeros_like(outputs[0])
    for t in range(begin + 1, end):
        regressors = np.stack([outputs[begin], samples[begin], samples[t]])
        total += responses[t] * (outputs[t] - explicit(outputs, samples, (begin,), t) @ regressors)
    return float((total**2).mean())


@pytest.mark.parametrize("computed", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_plan_is_the_best_of_all_with_explicit_forecasts(seed: int, computed: int) -> None:
    outputs, samples = series(seed)
    known = statistics(seed)
    costs = {}
    for others in combinations(range(1, STEPS), computed - 1):
        segments = pairwise((0, *others, STEPS))
        costs[0, *others] = sum(moved(outputs, samples, known.responses, *segment) for segment in segments)
    found = best_plan(known, computed, ridge=0.0)
    assert tuple(found) == min(costs, key=lambda steps: costs[steps])


def test_responses_decide_which_errors_count() -> None:
    outputs, samples = series(0)
    only = Statistics(gram(outputs, samples), (0.0, 0.0, 0.0, 1.0, 0.0, 0.0), MARK, 3)
    assert 3 in best_plan(only, 2, 0.0)


@pytest.mark.parametrize("computed", [0, 7])
def test_a_plan_of_steps_that_are_not_there_is_refused(computed: int) -> None:
    with pytest.raises(ValueError, match=rf"computed={computed} is not possible in a run of 6 .*choose 1 to 6"):
        best_plan(statistics(), computed, 0.0)


def test_statistics_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    kept = statistics()
    kept.save(tmp_path / "own.safetensors")
    found = Statistics.load(tmp_path / "own.safetensors")
    assert np.array_equal(found.gram, kept.gram)
    assert (found.responses, found.fingerprint, found.samples) == (kept.responses, kept.fingerprint, kept.samples)
    assert repr(found) == "Statistics(6 steps, 3 samples)"


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*some\.safetensors"):
        Statistics.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
        Statistics.load(path)
    save_file({"gram": torch.zeros(2, 2)}, str(path))
    with pytest.raises(ValueError, match=r"give what statistics\.save wrote"):
        Statistics.load(path)
    save_file({"gram": torch.zeros(2, 2)}, str(path), {"kind": "diffaccel second moments of outputs and samples"})
    with pytest.raises(ValueError, match="holds no whole moments"):
        Statistics.load(path)
    with pytest.raises(ValueError, match=r"ends in \.safetensors, got .*own\.bin"):
        statistics().save(tmp_path / "own.bin")


def test_values_that_are_not_finite_and_shapes_that_do_not_fit_are_refused() -> None:
    good = statistics()
    broken = good.gram.copy()
    broken[2, 2] = np.nan
    with pytest.raises(ValueError, match="hold NaN or infinity: check what the pipeline makes uncached"):
        Statistics(broken, good.responses, MARK, 1)
    with pytest.raises(ValueError, match=r"moments of 6 steps have shape \(12, 12\), got \(10, 10\)"):
        Statistics(good.gram[:10, :10], good.responses, MARK, 1)
