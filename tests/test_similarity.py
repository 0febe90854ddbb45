"""Do the tables of all pairs of steps hold what the metrics are defined as, for outputs of real transformer layers?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from diffaccel.similarity import BETTER, METRICS, similarity

Array = npt.NDArray[np.float64]

STEPS, TOKENS, WIDTH = 7, 3, 16


def moved_mass(a: Array, b: Array) -> float:
    """Wasserstein distance on the line: the area between the two distribution functions."""
    places = np.sort(np.concatenate([a, b]))
    below = [(numbers <= places[:-1, None]).mean(1) for numbers in (a, b)]
    return float(np.abs(below[0] - below[1]) @ np.diff(places))


DEFINITIONS: dict[str, Callable[[Array, Array], float]] = {
    "cosine": lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b)),
    "l1": lambda a, b: np.abs(a - b).mean(),
    "l2": lambda a, b: np.sqrt(((a - b) ** 2).sum()),
    "mse": lambda a, b: ((a - b) ** 2).mean(),
    "wasserstein": moved_mass,
}


def outputs(samples: int = 1, seed: int = 0) -> Tensor:
    """What the feed-forward block of a layer puts out while its input drifts, shape (samples, steps, tokens, width)."""
    torch.manual_seed(seed)
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 32, activation="gelu", batch_first=True, norm_first=True).eval()
    drift = torch.randn(samples, STEPS, TOKENS, WIDTH).cumsum(1)
    with torch.no_grad():
        return torch.as_tensor(layer._ff_block(layer.norm3(drift)))


def test_every_metric_is_defined_here() -> None:
    assert set(DEFINITIONS) == set(METRICS) == set(BETTER)


@pytest.mark.parametrize("metric", METRICS)
def test_definition(metric: str) -> None:
    features = outputs()[0]
    vectors = features.flatten(1).double().numpy()
    expected = [[DEFINITIONS[metric](a, b) for b in vectors] for a in vectors]
    assert similarity(features, metric) == pytest.approx(np.array(expected), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_better_says_where_equal_outputs_stand(metric: str) -> None:
    table = similarity(outputs()[0], metric)
    best = table.max() if BETTER[metric] == "higher" else table.min()
    assert np.diagonal(table) == pytest.approx(best)
    assert np.array_equal(table, table.T)


@pytest.mark.parametrize("metric", METRICS)
def test_of_samples_the_mean_of_their_tables(metric: str) -> None:
    features = outputs(samples=4)
    tables = [similarity(one, metric) for one in features]
    assert similarity(features, metric, samples=True) == pytest.approx(np.mean(tables, axis=0), rel=1e-12)
    # Not one table of what the samples are together: a sample of large outputs would count for all.
    if metric == "cosine":
        loud = features * torch.tensor([1.0, 1.0, 1.0, 100.0]).view(4, 1, 1, 1)
        assert similarity(loud, metric, samples=True) == pytest.approx(np.mean(tables, axis=0), rel=1e-6)
        assert similarity(loud.transpose(0, 1), metric) != pytest.approx(np.mean(tables, axis=0), rel=1e-2)


@pytest.mark.parametrize("form", ["tensor", "numpy", "reversed", "read-only", "list", "of tensors", "of arrays"])
def test_forms_of_features(form: str) -> None:
    features = outputs()[0].double()
    given: Any = {
        "tensor": features,
        "numpy": features.numpy(),
        "reversed": features.numpy()[::-1].copy()[::-1],
        "read-only": np.broadcast_to(features.numpy(), features.shape),
        "list": features.tolist(),
        "of tensors": list(features),
        "of arrays": list(features.numpy()),
    }[form]
    assert np.array_equal(similarity(given), similarity(features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float64(dtype: torch.dtype) -> None:
    features = outputs()[0].to(dtype)
    assert np.array_equal(similarity(features, "mse"), similarity(features.double(), "mse"))


def test_close_outputs_far_from_zero_keep_their_distance() -> None:
    near = 1e6 + torch.eye(3, dtype=torch.float64) * 1e-3
    assert similarity(near, "l2")[0, 1] == pytest.approx(1e-3 * 2**0.5, rel=1e-5)


def test_cosine_of_silent_outputs() -> None:
    """A gate that is shut adds zero: reusing it at a step where it is shut, too, changes nothing."""
    assert similarity([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("features", "metric", "samples", "said"),
    [
        (torch.zeros(3, 2), "cosin", False, "cosine, l1"),
        (torch.zeros(1, 2), "l1", False, "at least 2 steps"),
        (torch.zeros(5, 1, 2), "l1", True, "at least 2 steps"),
        (torch.zeros(5), "l1", False, "shape"),
        (torch.zeros(5, 2), "l1", True, "samples, steps"),
        (torch.zeros(0, 5, 2), "l1", True, "empty"),
        (torch.full((3, 2), torch.nan), "cosine", False, "NaN"),
        (torch.full((3, 2), torch.inf), "cosine", False, "infinity"),
        ([torch.zeros(2), torch.zeros(3)], "cosine", False, "one shape"),
    ],
)
def test_features_refused(features: Any, metric: str, samples: bool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        similarity(features, metric, samples)


def test_scale_matters_to_distances_only() -> None:
    features = outputs()[0].double()
    for metric, factor in product(METRICS, (3.0, 0.5)):
        scaled, table = similarity(factor * features, metric), similarity(features, metric)
        power = {"cosine": 0, "mse": 2}.get(metric, 1)
        assert scaled == pytest.approx(table * factor**power, rel=1e-9, abs=1e-12)
